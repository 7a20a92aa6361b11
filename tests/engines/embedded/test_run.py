"""Runs: interruption, concurrency, events and failed steps."""

from __future__ import annotations

import json
import signal

import pytest

from observatory.engines import embedded as engine
from observatory.engines.embedded import StepEvent
from tests.engines.embedded.lab import HELD, TIMEOUT_S, Lab, eventually

pytestmark = pytest.mark.slow


def test_an_operation_interrupted_by_sigkill_is_reported_and_repeated(lab: Lab) -> None:
    lab.program(HELD)
    killed = lab.start()
    eventually(lambda: lab.has_begun("create", "b"))
    killed.kill()
    killed.communicate()
    pending = lab.state()["pending_operations"]
    assert [(op["type"], op["resource"]["urn"].rpartition("::")[2]) for op in pending] == [("creating", "b")]
    assert lab.names() == ["a"]
    eventually(lambda: not lab.host_pids())
    (lab.home / "go").touch()
    outcome = lab.embedded("up")
    assert outcome.steps == ["create b", "create c"]
    assert any("interrupted while creating" in text for _, text in lab.diagnostics())
    assert "pending_operations" not in lab.state()


@pytest.mark.cli
def test_the_cli_continues_after_sigkill(lab: Lab) -> None:
    lab.program(HELD)
    killed = lab.start()
    eventually(lambda: lab.has_begun("create", "b"))
    killed.kill()
    killed.communicate()
    for lock in lab.locks:
        lock.unlink()
    (lab.home / "go").touch()
    outcome = lab.cli("up")
    assert outcome.steps == ["create b", "create c"]
    assert "interrupted while creating" in outcome.message
    assert lab.embedded("up").steps == []


def test_a_second_interrupt_aborts_the_step_in_flight(lab: Lab) -> None:
    lab.program(HELD)
    run = lab.start()
    eventually(lambda: lab.has_begun("create", "b"))
    run.send_signal(signal.SIGINT)
    assert run.stderr
    assert any("Ctrl-C once more" in line for line in run.stderr)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=TIMEOUT_S)
    assert json.loads(output)["error"]["type"] == "Interrupted"
    assert lab.names() == ["a"]
    assert lab.locks == []
    assert lab.host_pids() == []
    (lab.home / "go").touch()
    assert lab.embedded("up").steps == ["create b", "create c"]


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_step_in_flight_finish(lab: Lab, number: signal.Signals) -> None:
    lab.program(HELD)
    run = lab.start()
    eventually(lambda: lab.has_begun("create", "b"))
    run.send_signal(number)
    assert run.stderr
    assert any("waiting for the steps in flight" in line for line in run.stderr)
    (lab.home / "go").touch()
    output, _ = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 1
    assert json.loads(output)["error"]["type"] == "Interrupted"
    assert lab.names() == ["a", "b"]
    assert "pending_operations" not in lab.state()
    assert lab.locks == []
    assert lab.embedded("up").steps == ["create c"]


def test_independent_resources_are_created_concurrently(lab: Lab) -> None:
    lab.program('Thing("a", wait="both")\nThing("b", wait="both")\n')
    run = lab.start()
    eventually(lambda: lab.log().count('["create", ') == 2)
    (lab.home / "both").touch()
    output, _ = run.communicate(timeout=TIMEOUT_S)
    assert json.loads(output)["summary"] == {"create": 3}


def test_events_and_changes(lab: Lab) -> None:
    lab.program('Thing("a", size=1, key=Output.secret("hush-hush"))\npulumi.log.warn("be careful")\nprint("hello")')
    lab.embedded("up")
    assert ("warning", "be careful") in lab.diagnostics()
    assert ("info", "hello") in lab.diagnostics()
    steps = [(event.status, event.step.name) for event in lab.events if isinstance(event, StepEvent)]
    assert steps == [("started", "lab-dev"), ("done", "lab-dev"), ("started", "a"), ("done", "a")]
    lab.program('Thing("a", size=2, key=Output.secret("hush"))')
    result = engine.preview(lab.options)
    changes = {(change.path, change.old, change.new) for change in result.steps[-1].changes}
    assert changes == {("size", 1, 2), ("key", "[secret]", "[secret]")}
    assert result.summary == {"same": 1, "update": 1}


def test_a_failed_step_has_the_providers_message_without_its_frames(lab: Lab) -> None:
    lab.program('Thing("a")\nThing("b", fail="create")')
    lab.prepare()
    with pytest.raises(engine.StepFailed) as caught:
        engine.up(lab.options)
    assert str(caught.value).endswith("b: no create today")
    assert caught.value.urn.endswith("::b")
    assert "Traceback" in caught.value.detail
    assert caught.value.result is not None


def test_a_provider_that_exits_fails_its_step(lab: Lab) -> None:
    lab.program('Thing("a", fail="die")')
    outcome = lab.embedded("up")
    assert "host" in outcome.message
    assert "died" in outcome.message
    assert lab.names() == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('pulumi.export("v", float("nan"))', "outputs of lab-dev: v is nan: a state has finite numbers only"),
        ('pulumi.export("v", {"a": [1, float("-inf")]})', "outputs of lab-dev: v.a[1] is -inf: a state"),
        ('Thing("a", size=1, key=float("inf"))', "inputs of a: key is inf: a state has finite numbers only"),
        ('pulumi.export("v", object())', "unexpected input of type object for v"),
    ],
)
def test_a_value_that_no_state_can_have_is_refused_by_name(lab: Lab, body: str, message: str) -> None:
    lab.program(body)
    outcome = lab.embedded("up")
    assert message in outcome.message
    assert "Traceback" not in outcome.message
    assert not lab.embedded("preview").outputs


def test_a_resource_that_is_deleted_with_a_replaced_one_is_not_deleted_itself(lab: Lab) -> None:
    program = 'a = Thing("a", Options(delete_before_replace=True), rep="{rep}")\nThing("b", Options(deleted_with=a))\n'
    lab.program(program.format(rep="1"))
    assert not lab.embedded("up").failed
    lab.program(program.format(rep="2"))
    outcome = lab.embedded("up")
    deleted = [call[-1]["name"] for call in map(json.loads, outcome.calls) if call[0] == "delete"]
    assert deleted == ["a"]
    assert {"delete-replaced b", "create-replacement b"} <= set(outcome.steps)
