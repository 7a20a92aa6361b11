"""The command loads what it uses and nothing else; what a running stack is asked is watched in `tests/stack`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import SOURCE, Checkout
from tests.support.imports import HEAVY, run_watched
from tests.support.upgrades import recorded_releases


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return Checkout.copy(tmp_path_factory.mktemp("fresh"), rootfs=None)


ALWAYS_LOADED = ("plan", "retries", "stack_bootstrap")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--help",), 0),
        (("outputs",), 3),
        (("status",), 3),
        (("rollback", "--method", "blue-green", "--emergency"), 3),
    ],
)
def test_commands_without_program_and_database_load_neither(
    fresh: Checkout, arguments: tuple[str, ...], code: int
) -> None:
    _, loaded = run_watched(fresh, *arguments, expect=code)
    assert loaded & {*HEAVY, "psutil"} == set()


def test_the_version_loads_no_command_and_no_settings(fresh: Checkout) -> None:
    _, loaded = run_watched(fresh, "--version")
    assert {module for module in loaded if module.startswith("observatory.")} <= {
        *("observatory.__main__", "observatory.errors", "observatory.interruption", "observatory.interruption.signals"),
        *("observatory.interruption.parallel", "observatory.progress", "observatory.waiting"),
        *("observatory.cli", *(f"observatory.cli.{each}" for each in ("app", "interrupted", "parameters", "terminal"))),
    }
    assert "pydantic" not in loaded


@pytest.mark.parametrize("name", ["logs", "scheduler"])  # the scheduler runs each job by a command
def test_a_command_loads_no_other_commands(fresh: Checkout, name: str) -> None:
    _, loaded = run_watched(fresh, name, "--help")
    modules = {module.removeprefix("observatory.cli.") for module in loaded if module.startswith("observatory.cli.")}
    assert modules <= {"app", "interrupted", "parameters", "terminal", name}


def test_help_loads_no_operation(fresh: Checkout) -> None:
    """One that is loaded brings whatever any of them needs: every command then waits for it."""
    _, loaded = run_watched(fresh, "--help")
    operations = {module for module in loaded if module.startswith("observatory.operations.")}
    assert operations <= {f"observatory.operations.{module}" for module in ALWAYS_LOADED}


def test_a_status_loads_neither_the_scheduler_nor_the_program(tmp_path: Path) -> None:
    checkout = Checkout.copy(tmp_path / "checkout", rootfs=None)
    recorded_releases()[-1].install(checkout, tmp_path / "rootfs")  # the state of a stack whose daemons are down
    shown, loaded = run_watched(checkout, "status", expect=1)
    assert "storage-blue-1" in shown
    assert loaded & HEAVY <= {"jinja2", "apscheduler", "cryptography"}
    assert "apscheduler.schedulers" not in loaded


def test_a_plan_of_local_loads_no_cloud_sdk(fresh: Checkout) -> None:
    _, loaded = run_watched(fresh, "preview", "--engine", "embedded")
    assert "pulumi" in loaded
    assert loaded & {"pulumi_aws", "pulumi_kubernetes", "apscheduler", "httpx"} == set()


def test_a_plan_of_production_connects_to_no_database(fresh: Checkout) -> None:
    _, loaded = run_watched(fresh, "preview", "-e", "production", "--engine", "embedded")
    assert "pulumi_aws" in loaded
    assert loaded & {"apscheduler", "botocore", "httpx", "psycopg"} == set()


BUILT = """
import importlib, sys
from pydantic import BaseModel
for name in sys.argv[1:]:
    importlib.import_module(name)
def below(model):
    for each in model.__subclasses__():
        yield each
        yield from below(each)
models = [each for each in below(BaseModel) if each.__module__.startswith("observatory.")]
assert len(models) > 40
print(*(f"{each.__module__}.{each.__name__}" for each in models if each.__pydantic_complete__))
"""


def test_importing_builds_no_model() -> None:
    """A model is built when it is first used: 1 ms for each that a command imports and does not use."""
    files = [file for file in (SOURCE / "observatory").rglob("*.py") if "pydantic" in file.read_text(encoding="utf-8")]
    names = [".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__") for file in files]
    done = subprocess.run([sys.executable, "-c", BUILT, *names], cwd=SOURCE, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


INTERRUPTED_IMPORT = """
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from observatory.__main__ import main
main()
"""


@pytest.mark.parametrize("imported", ["typer", "observatory.cli.stack"])
def test_an_interrupt_during_the_import_is_a_message(imported: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED_IMPORT, imported]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "error: interrupted before anything was begun\n"


@pytest.mark.parametrize(("umask", "kept"), [(0o000, 0o022), (0o002, 0o022), (0o077, 0o077)])
def test_others_may_not_write_to_what_a_command_makes(umask: int, kept: int) -> None:
    program = (
        "import atexit, os, sys; from observatory.__main__ import main; sys.argv = ['observatory', '--version']; "
        "atexit.register(lambda: print(os.umask(0))); main()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=SOURCE, umask=umask, capture_output=True, check=True)
    assert int(done.stdout.split()[-1]) == kept


def test_a_command_looks_for_no_garbage_in_what_it_has_imported() -> None:
    program = (
        "import atexit, gc, sys; from observatory.__main__ import main; sys.argv = ['observatory', '--version']; "
        "gc.collect(); gc.callbacks.append(lambda phase, info: during.append(info['generation'])); during = []; "
        "atexit.register(lambda: print(2 in during, gc.isenabled(), gc.get_freeze_count() > 10_000)); main()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=SOURCE, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False True True"
