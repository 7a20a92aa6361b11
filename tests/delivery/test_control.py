"""Control requests to a running deployment."""

from __future__ import annotations

import itertools

import pytest

from observatory.delivery.control import send_control_request
from observatory.delivery.deployment import deploy
from observatory.delivery.errors import DeliveryRefusedError, RolledBackError
from observatory.documents.rollout import Deployment
from tests.delivery.environment import Simulation, simulation
from tests.delivery.faults import blue_green, once


def test_a_paused_deployment_continues_when_it_is_promoted() -> None:
    stack = simulation()
    sleeps = itertools.count()

    def control() -> None:
        sleep = next(sleeps)
        if sleep == 0:
            send_control_request(stack.environment(), "pause")
        if sleep == 8:
            assert stack.live["green"] == 100
            assert not _deployment(stack).ended
            send_control_request(stack.environment(), "promote")

    stack.each_sleep = control
    deploy(stack.environment(), blue_green(bake_s=10_000.0))
    assert _deployment(stack).status == "promoted"
    assert stack.time < 1000


def test_a_resumed_deployment_bakes_on() -> None:
    stack = simulation()
    sleeps = itertools.count()

    def control() -> None:
        sleep = next(sleeps)
        if sleep in (0, 20):
            send_control_request(stack.environment(), "pause" if sleep == 0 else None)

    stack.each_sleep = control
    deploy(stack.environment(), blue_green())
    assert _deployment(stack).status == "promoted"
    assert stack.time >= 20 * 5 + 30
    assert [details["request"] for event, details in stack.events if event == "ask"] == ["pause", "resume"]


def test_an_aborted_deployment_is_rolled_back() -> None:
    stack = simulation()
    stack.each_sleep = once(lambda: send_control_request(stack.environment(), "abort"))
    with pytest.raises(RolledBackError, match="aborted"):
        deploy(stack.environment(), blue_green())
    assert stack.live["green"] == 0
    with pytest.raises(DeliveryRefusedError, match="no deployment is under way"):
        send_control_request(stack.environment(), "pause")


def _deployment(stack: Simulation) -> Deployment:
    assert stack.store.document
    assert stack.store.document.deployment
    return stack.store.document.deployment
