"""The Pulumi CLI run by the library: failures, signals and SIGKILL, on a small program."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from observatory.engines.cli import automation
from observatory.engines.cli.orphans import end_plugins
from observatory.engines.embedded import DiagnosticEvent, Event, LockedError, StateError, StepEvent, StepFailed
from tests.engines.embedded.lab import HELD, STACK, TIMEOUT_S, Lab, eventually

pytestmark = pytest.mark.cli

CONFIG = "# A comment that stays.\nconfig:\n    'lab:size':   \"large\"  # and another\n\n"  # the CLI formats it again
RUN = """
import sys
from observatory.engines.cli import automation
from observatory.engines.cli.orphans import end_plugins
from observatory.engines.embedded import EngineError, StackOptions
from pathlib import Path
try:
    automation.up(StackOptions(cwd=Path.cwd(), stack=sys.argv[1], backend=Path(sys.argv[2]), passphrase=sys.argv[3]))
except EngineError as error:
    print(type(error).__name__, [step.name for step in error.result.steps if step.type.endswith("Thing")])
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab(tmp_path / "it's 100% #1?", config=CONFIG)  # a path that a URL reads in another way
    monkeypatch.setenv("ENGINE_LAB", str(made.home))
    made.prepare()
    return made


def start_held(lab: Lab) -> subprocess.Popen[str]:
    """Start `up` in a process of its own, and return as soon as it creates `b`."""
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
    eventually(lambda: lab.has_begun("create", "b"))
    return run


def processes(lab: Lab) -> dict[int, str]:
    """Return the command lines of the processes whose working directory is in the lab, by process ID."""
    found = psutil.process_iter(["cwd", "cmdline"])
    inside = (process for process in found if Path(process.info["cwd"] or "/").is_relative_to(lab.home))
    return {process.pid: " ".join(process.info["cmdline"] or []) for process in inside}


def is_cli_gone(lab: Lab) -> bool:
    return not any(command.startswith("pulumi ") for command in processes(lab).values())


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


def test_only_the_salt_is_removed_from_the_configuration(lab: Lab) -> None:
    lab.program('Thing("a")\n')
    automation.up(lab.options)
    salt = lab.state()["secrets_providers"]["state"]["salt"]
    (lab.project / f"Pulumi.{STACK}.yaml").write_text(f"encryptionsalt: {salt}\n{CONFIG}")
    automation.preview(lab.options)
    assert configuration(lab) == CONFIG


def test_no_stack_is_selected(lab: Lab) -> None:
    lab.program('Thing("a")\n')
    lab.pulumi("stack", "init", "mine")
    automation.preview(lab.options)
    automation.up(lab.options)
    listed = json.loads(lab.pulumi("stack", "ls", "--json").stdout)
    assert {each["name"]: each["current"] for each in listed} == {"mine": True, STACK: False}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_step_finish_and_leaves_no_process(lab: Lab, number: signal.Signals) -> None:
    run = start_held(lab)
    run.send_signal(number)
    run.send_signal(signal.SIGTERM)  # a second signal other than SIGINT does not abort
    time.sleep(5)  # for the CLI to take note, which shows nowhere; the step waits as long as it takes
    (lab.home / "go").touch()
    assert run.communicate(timeout=TIMEOUT_S) == ("Interrupted ['a', 'b']\n", "")
    assert lab.names() == ["a", "b"]
    assert "pending_operations" not in lab.state()
    assert processes(lab) == {}
    assert lab.locks == []
    assert configuration(lab) == CONFIG


def test_up_continues_after_a_killed_cli(lab: Lab) -> None:
    run = start_held(lab)
    run.kill()
    run.communicate()
    eventually(lambda: is_cli_gone(lab))
    assert len(lab.locks) == 1
    assert processes(lab), "no process is left to end"
    hashes = Path(f"{lab.checkpoint}.attrs")
    assert hashes.read_text()
    hashes.write_text("")  # as a CLI leaves it that is killed while it writes
    with pytest.raises(StateError, match="`observatory up` removes"):
        automation.preview(lab.options)
    (lab.home / "go").touch()
    events: list[Event] = []
    automation.up(lab.options, on_event=events.append)
    warnings = [event.message for event in events if isinstance(event, DiagnosticEvent)]
    assert any("removed the lock left by" in message for message in warnings)
    assert lab.names() == ["a", "b", "c"]
    assert processes(lab) == {}
    assert lab.locks == []
    assert configuration(lab) == CONFIG


def test_the_embedded_engine_continues_after_a_killed_cli(lab: Lab) -> None:
    run = start_held(lab)
    run.kill()
    run.communicate()
    eventually(lambda: is_cli_gone(lab))
    automation.end_killed_run(lab.options, None)
    assert processes(lab) == {}
    assert lab.locks == []
    (lab.home / "go").touch()
    done = lab.embedded("up")
    assert not done.failed, done.message
    named = [event.urn for event in lab.events if isinstance(event, DiagnosticEvent) and "interrupted" in event.message]
    assert [urn.rpartition("::")[2] for urn in named] == ["b"]
    assert lab.names() == ["a", "b", "c"]
    assert lab.locks == []
    assert lab.cli("preview").steps == []


def test_the_plugins_of_a_killed_cli_that_a_user_started_are_ended(lab: Lab) -> None:
    """It leads no session of its own, so that its plugins are found by their directory and their lost parent."""
    lab.program(HELD)
    lab.pulumi("stack", "init", STACK)
    command = ["pulumi", "up", "--yes", "--skip-preview", "--stack", STACK]
    user = subprocess.Popen(command, cwd=lab.project, env=lab.environment, stdout=subprocess.DEVNULL)
    eventually(lambda: lab.has_begun("create", "b"))
    end_plugins(lab.project)
    assert lab.host_pids(), "a plugin of a running CLI was ended"
    user.kill()
    user.wait()
    assert lab.host_pids(), "no plugin is left to end"
    automation.end_killed_run(lab.options, None)
    assert lab.host_pids() == []
    assert lab.locks == []


def test_a_running_cli_is_not_disturbed(lab: Lab) -> None:
    run = start_held(lab)
    with pytest.raises(LockedError, match="is locked by"):
        automation.up(lab.options)
    assert "is locked by" in lab.embedded("up").message
    (lab.home / "go").touch()
    assert run.communicate(timeout=TIMEOUT_S)[1] == ""
    assert lab.names() == ["a", "b", "c"]


def test_a_changed_resource_is_reported_without_its_secret(lab: Lab) -> None:
    program = 'a = Thing("a", size={size}, key=Output.secret("hush"), deep={{"in": [Output.secret("hush")]}})'
    events: list[Event] = []
    for size in (1, 2):
        lab.program(program.format(size=size))
        events.clear()
        automation.up(lab.options, on_event=events.append)
    changes = [change for event in events if isinstance(event, StepEvent) for change in event.step.changes]
    assert {(change.path, change.old, change.new) for change in changes} == {("size", 1, 2)}
    assert "hush" not in repr(events)
