"""A machine is not created over the home of another stack or another state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.local.machine import MachineProvider
from observatory.runtime import Sandbox
from observatory.runtime.home import HomeError, check_not_moved, set_in_state
from tests.engines.embedded.lab import Lab
from tests.support.checkout import SOURCE

pytestmark = pytest.mark.slow


@pytest.fixture
def sandbox(tmp_path: Path, rootfs: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path / "home", rootfs)
    yield sandbox
    sandbox.stop(timeout=10)


def props(sandbox: Sandbox, stack: str = "project/local") -> dict[str, Any]:
    return {"home": str(sandbox.home), "rootfs": str(sandbox.rootfs), "stack": stack}


def refusals(sandbox: Sandbox, stack: str = "project/local") -> str:
    """Return why a machine that is new in the state is refused."""
    return " ".join(failure.reason for failure in MachineProvider().check({}, props(sandbox, stack)).failures)


def test_a_home_whose_daemons_run_is_refused_to_an_empty_state(sandbox: Sandbox) -> None:
    provider = MachineProvider()
    assert not refusals(sandbox)
    provider.create(props(sandbox))
    assert not refusals(sandbox)  # as after an `up` that was killed before the state had the machine
    set_in_state(sandbox, in_state=True)
    assert "Restore the state" in refusals(sandbox)
    assert not provider.check(props(sandbox), props(sandbox)).failures
    provider.delete("machine", props(sandbox))
    assert not refusals(sandbox)  # as after a destroy, whose data the next `up` continues with


def test_a_home_of_a_stopped_stack_is_refused_to_another_project(sandbox: Sandbox) -> None:
    MachineProvider().create(props(sandbox))
    sandbox.stop(timeout=10)
    assert not refusals(sandbox)
    assert "is the home of the stack project/local" in refusals(sandbox, "renamed/local")


def test_another_home_is_refused_while_the_old_one_has_the_data(sandbox: Sandbox, tmp_path: Path) -> None:
    provider = MachineProvider()
    provider.create(props(sandbox))
    renamed = props(Sandbox(tmp_path / "renamed", sandbox.rootfs), "project/renamed")
    with pytest.raises(HomeError, match="would create an empty database"):
        provider.diff("machine", props(sandbox), renamed)
    sandbox.stop(timeout=10)
    (tmp_path / "home").rename(tmp_path / "moved")  # as when the checkout is moved
    assert provider.diff("machine", props(sandbox), renamed).replaces == ["home"]


def test_a_state_without_the_stacks_name_gets_it(sandbox: Sandbox) -> None:
    """As the states of 0.1.0."""
    provider, news = MachineProvider(), props(sandbox)
    olds = {key: value for key, value in news.items() if key != "stack"}
    sandbox.start()
    assert provider.diff("machine", olds, news).changes
    provider.update("machine", olds, news)
    assert not provider.diff("machine", news, news).changes
    assert "is the home" in refusals(sandbox, "renamed/local")


def test_a_home_is_the_same_by_whatever_path(tmp_path: Path) -> None:
    (tmp_path / "home/data").mkdir(parents=True)
    (tmp_path / "link").symlink_to("home")
    check_not_moved(tmp_path / "home", tmp_path / "link")
    with pytest.raises(HomeError):
        check_not_moved(tmp_path / "home", tmp_path / "other")


PROGRAM = """
from pathlib import Path
from components.local.machine import Machine, MachineArgs
Machine("machine", MachineArgs(home=Path({home!r}), rootfs=Path({rootfs!r}), stack="lab/dev"))
"""
ENGINES = [pytest.param("embedded"), pytest.param("cli", marks=pytest.mark.cli)]


@pytest.mark.parametrize("engine", ENGINES)
def test_either_engine_refuses_another_state_and_another_home(
    sandbox: Sandbox, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    lab = Lab(tmp_path / "lab")
    run = getattr(lab, engine)
    lab.program(PROGRAM.format(home=str(sandbox.home), rootfs=str(sandbox.rootfs)))
    assert not (created := run("up")).failed, created.message
    set_in_state(sandbox, in_state=True)
    assert run("up").steps == []

    lab.program(PROGRAM.format(home=str(tmp_path / "renamed"), rootfs=str(sandbox.rootfs)))
    for operation in ("preview", "up"):
        assert "would create an empty database" in run(operation).message
    assert not (tmp_path / "renamed").exists()

    lab.program(PROGRAM.format(home=str(sandbox.home), rootfs=str(sandbox.rootfs)))
    state = lab.checkpoint.read_bytes()
    lab.checkpoint.unlink()
    for operation in ("preview", "up"):
        assert "the state has no machine" in run(operation).message
    lab.checkpoint.write_bytes(state)
    assert run("up").steps == []
    assert run("destroy").steps == ["delete lab-dev", "delete machine"]
    assert run("up").steps == ["create lab-dev", "create machine"]


def test_a_repository_outside_of_the_home_restarts_the_sandbox_which_then_sees_it(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    provider, olds, place = MachineProvider(), props(sandbox), tmp_path / "disk"
    provider.create(olds)
    news = {**olds, "repositories": {"2": str(place)}}
    (failure,) = provider.check(olds, news).failures
    assert failure.property == "repositories"
    assert "does not exist" in failure.reason
    place.mkdir()
    (place / "archive").mkdir()
    assert not provider.check(olds, news).failures
    assert provider.diff("machine", olds, news).changes
    before = sandbox.supervisor_pid()
    provider.update("machine", olds, news)
    assert sandbox.supervisor_pid() not in (None, before)
    assert not provider.diff("machine", news, news).changes
    assert sandbox.run(["/bin/ls", "/run/backups-2"]).stdout.split() == ["archive"]
    provider.update("machine", news, olds)
    assert sandbox.run(["/bin/ls", "/run"]).stdout == ""
    assert (place / "archive").is_dir()
