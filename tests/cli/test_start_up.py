"""The command loads what it uses and nothing else; what a running stack is asked is watched in `tests/stack`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.checkout import Checkout
from tests.support.imports import HEAVY, run_watched


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
    assert loaded & HEAVY == set()


def test_help_loads_no_operation(fresh: Checkout) -> None:
    """One that is loaded brings whatever any of them needs: every command then waits for it."""
    _, loaded = run_watched(fresh, "--help")
    operations = {module for module in loaded if module.startswith("observatory.operations.")}
    assert operations <= {f"observatory.operations.{module}" for module in ALWAYS_LOADED}


def test_a_plan_of_local_loads_no_cloud_sdk(fresh: Checkout) -> None:
    _, loaded = run_watched(fresh, "preview", "--engine", "embedded")
    assert "pulumi" in loaded
    assert loaded & {"pulumi_aws", "pulumi_kubernetes", "apscheduler", "httpx"} == set()


def test_a_plan_of_production_connects_to_no_database(fresh: Checkout) -> None:
    _, loaded = run_watched(fresh, "preview", "-e", "production", "--engine", "embedded")
    assert "pulumi_aws" in loaded
    assert loaded & {"apscheduler", "botocore", "httpx", "psycopg"} == set()


INTERRUPTED_IMPORT = """
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from observatory.__main__ import main
main()
"""


def test_an_interrupt_during_the_import_is_a_message() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "error: interrupted before anything was begun\n"
