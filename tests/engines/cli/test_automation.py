"""The CLI behind the library: how its runs fail, are stopped and are killed, on a small program."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from observatory.engines.cli import automation
from observatory.engines.embedded import DiagnosticEvent, Event, LockedError, StateError, StepEvent, StepFailed
from tests.engines.embedded.lab import STACK, Lab

pytestmark = pytest.mark.cli

CONFIG = "# A comment that stays.\nconfig:\n  lab:size: large # and another\n"
HELD = 'a = Thing("a")\nb = Thing("b", Options(depends_on=[a]), wait="go")\nc = Thing("c", Options(depends_on=[b]))\n'
RUN = """
import sys
from observatory.engines.cli import automation
from observatory.engines.embedded import EngineError, StackOptions
from pathlib import Path
try:
    automation.up(StackOptions(cwd=Path.cwd(), stack=sys.argv[1], backend=Path(sys.argv[2]), passphrase=sys.argv[3]))
except EngineError as error:
    print(type(error).__name__, [step.name for step in error.result.steps if step.type.endswith("Thing")])
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab(tmp_path, config=CONFIG)
    made.embedded_calls()
    monkeypatch.setenv("ENGINE_LAB", str(made.home))
    return made


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def start_held(lab: Lab) -> subprocess.Popen[str]:
    """Start `up` in a process of its own, and return while it creates `b`."""
    lab.program(HELD)
    options = lab.options
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, STACK, str(options.backend), options.passphrase],
        cwd=lab.project,
        env=lab.environment | {"PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: '"name": "b"' in lab.log() and lab.log().count('["create", ') == 2)
    return run


def workers(lab: Lab) -> dict[int, str]:
    """Return the processes that work in the project, by what they run."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink().is_relative_to(lab.home):
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def configuration(lab: Lab) -> str:
    return (lab.project / f"Pulumi.{STACK}.yaml").read_text()


def test_a_failing_step_is_named(lab: Lab) -> None:
    lab.program('a = Thing("a")\nThing("b", Options(depends_on=[a]), fail="create")\n')
    with pytest.raises(StepFailed, match="no create today") as caught:
        automation.up(lab.options)
    assert caught.value.urn.endswith("::b")
    assert caught.value.operation == "create"
    assert caught.value.result
    assert "a" in [step.name for step in caught.value.result.steps]
    assert configuration(lab) == CONFIG


def test_a_salt_that_stands_in_the_file_is_dropped_and_nothing_else(lab: Lab) -> None:
    lab.program('Thing("a")\n')
    automation.up(lab.options)
    salt = lab.state()["secrets_providers"]["state"]["salt"]
    (lab.project / f"Pulumi.{STACK}.yaml").write_text(f"encryptionsalt: {salt}\n{CONFIG}")
    automation.preview(lab.options)
    assert configuration(lab) == CONFIG


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_up_ends_its_step_and_leaves_nothing_running(lab: Lab, number: signal.Signals) -> None:
    run = start_held(lab)
    run.send_signal(number)
    run.send_signal(signal.SIGTERM)  # asked for again: no reason to break off
    time.sleep(0.5)
    (lab.home / "go").touch()
    assert run.communicate(timeout=60) == ("Interrupted ['a', 'b']\n", "")
    assert lab.names() == ["a", "b"]
    assert "pending_operations" not in lab.state()
    assert workers(lab) == {}
    assert lab.locks == []
    assert configuration(lab) == CONFIG


def test_a_killed_up_is_taken_over(lab: Lab) -> None:
    run = start_held(lab)
    run.kill()
    run.communicate()
    eventually(lambda: not any(command.startswith("pulumi ") for command in workers(lab).values()))
    assert len(lab.locks) == 1
    assert workers(lab), "nothing to take over"
    hashes = Path(f"{lab.checkpoint}.attrs")
    assert hashes.read_text()
    hashes.write_text("")  # as it is left by a CLI that is killed in the very moment
    with pytest.raises(StateError, match="`observatory up` removes"):
        automation.preview(lab.options)
    (lab.home / "go").touch()
    events: list[Event] = []
    automation.up(lab.options, on_event=events.append)
    warnings = [event.message for event in events if isinstance(event, DiagnosticEvent)]
    assert any("removed the lock left by" in message for message in warnings)
    assert lab.names() == ["a", "b", "c"]
    assert workers(lab) == {}
    assert lab.locks == []
    assert configuration(lab) == CONFIG


def test_what_a_killed_cli_left_half_done_is_named_and_carried_on_by_the_embedded_engine(lab: Lab) -> None:
    run = start_held(lab)
    run.kill()
    run.communicate()
    eventually(lambda: not any(command.startswith("pulumi ") for command in workers(lab).values()))
    automation.take_over(lab.options, None)
    assert workers(lab) == {}
    assert lab.locks == []
    (lab.home / "go").touch()
    done = lab.embedded("up")
    assert not done.failed, done.message
    named = [event.urn for event in lab.events if isinstance(event, DiagnosticEvent) and "interrupted" in event.message]
    assert [urn.rpartition("::")[2] for urn in named] == ["b"]
    assert lab.names() == ["a", "b", "c"]
    assert lab.locks == []
    assert lab.cli("preview").steps == []


def test_a_run_under_way_is_left_alone(lab: Lab) -> None:
    run = start_held(lab)
    with pytest.raises(LockedError, match="is locked by"):
        automation.up(lab.options)
    assert "is locked by" in lab.embedded("up").message
    (lab.home / "go").touch()
    assert run.communicate(timeout=60)[1] == ""
    assert lab.names() == ["a", "b", "c"]


def test_a_changed_resource_with_a_secret_is_told_and_the_secret_is_not(lab: Lab) -> None:
    program = 'a = Thing("a", size={size}, key=Output.secret("hush"), deep={{"in": [Output.secret("hush")]}})'
    events: list[Event] = []
    for size in (1, 2):
        lab.program(program.format(size=size))
        events.clear()
        automation.up(lab.options, on_event=events.append)
    changes = [change for event in events if isinstance(event, StepEvent) for change in event.step.changes]
    assert {(change.path, change.old, change.new) for change in changes} == {("size", 1, 2)}
    assert "hush" not in repr(events)
