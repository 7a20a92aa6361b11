"""A control request is acknowledged by the running command, and an interrupted command says what it has changed."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import Any

import pytest

from observatory.delivery.control import send_control_request
from observatory.delivery.deployment import deploy
from observatory.delivery.errors import RolledBackError
from observatory.documents.journal import Entry
from observatory.operations.interrupted_delivery import outcome_of
from observatory.operations.rollout_control import ControlRequest, acknowledges
from tests.delivery.environment import Simulation, simulation
from tests.delivery.faults import blue_green


def events_of(stack: Simulation) -> list[Entry]:
    return [
        Entry(id=str(number), at=float(number), actor="a", event=event, details=details)
        for number, (event, details) in enumerate(stack.events)
    ]


@pytest.mark.parametrize("request_", ["pause", "promote", "abort", None])
def test_a_request_is_acknowledged_when_the_running_command_has_read_it(request_: ControlRequest | None) -> None:
    stack, sleeps, found = simulation(), itertools.count(), dict[str, Any]()

    def control() -> None:
        sleep = next(sleeps)
        if sleep == 0 and request_ is None:
            send_control_request(stack.environment(), "pause")
        if sleep == 2:
            send_control_request(stack.environment(), request_)
            found["since"] = float(len(stack.events) - 1)
            found["at once"] = acknowledges(events_of(stack), request_, since=found["since"])
        if sleep == 4 and request_ == "pause":
            found["paused"] = acknowledges(events_of(stack), request_, since=found["since"])
            send_control_request(stack.environment(), "abort")

    stack.each_sleep = control
    with suppress(RolledBackError):
        deploy(stack.environment(), blue_green(bake_s=60.0))
    assert found["at once"] is False
    assert found.get("paused", True)
    assert acknowledges(events_of(stack), request_, since=found["since"])


def test_what_an_interrupted_deployment_has_changed() -> None:
    stack = simulation()
    before = stack.store.read()
    assert outcome_of(before, before) == "the fleets and their traffic were not changed"

    def interrupt() -> None:
        raise KeyboardInterrupt

    stack.each_sleep = interrupt
    with pytest.raises(KeyboardInterrupt):
        deploy(stack.environment(), blue_green(bake_s=60.0))
    after = stack.store.read()
    assert after is not None
    assert after.deployment is not None
    version = after.deployment.version
    assert outcome_of(before, after) == f"{version} was rolled back: blue has 100 % of the traffic"
    unfinished = after.deployment.model_copy(update={"status": "shifting"})
    text = outcome_of(before, after.model_copy(update={"deployment": unfinished}))
    assert text.startswith(f"the deployment of {version} to green is shifting (blue 100 %, green 0 %): run the same")
