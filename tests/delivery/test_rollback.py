"""Rollbacks of finished and running deployments."""

from __future__ import annotations

import itertools

import pytest

from observatory.delivery.deployment import deploy
from observatory.delivery.errors import DeliveryRefusedError, RollbackFailedError, TakenOverError
from observatory.delivery.rollback import roll_back
from tests.delivery.environment import simulation
from tests.delivery.faults import blue_green, meanwhile, once


def test_a_rollback_takes_over_a_running_deployment() -> None:
    stack = simulation()
    stack.each_sleep = once(lambda: roll_back(stack.environment(), actor="other", reason="pages"))
    with pytest.raises(TakenOverError):
        deploy(stack.environment(), blue_green())
    assert stack.live == {"blue": 100, "green": 0}
    assert stack.store.document is not None
    assert stack.store.document.deployment is not None
    assert stack.store.document.deployment.status == "rolled-back"


def test_a_rollback_between_the_writes_of_document_and_balancer_wins() -> None:
    """The deployment that was taken over writes to the balancer last, and writes the newer document."""
    stack = simulation()
    calls = itertools.count()

    def meddle(place: str) -> None:
        if place == "set_weights" and next(calls) == 1:  # the deployment is about to write its shift
            stack.fault = lambda _place: None
            meanwhile(stack)

    stack.fault = meddle
    with pytest.raises(TakenOverError):
        deploy(stack.environment(), blue_green())
    assert stack.live == {"blue": 100, "green": 0}


def test_a_promoted_deployment_is_rolled_back_once() -> None:
    stack = simulation()
    deploy(stack.environment(), blue_green())
    roll_back(stack.environment(), actor="me", reason="latency")
    assert stack.live == {"blue": 100, "green": 0}
    with pytest.raises(DeliveryRefusedError, match="rolled back already"):
        roll_back(stack.environment(), actor="me", reason="again")


def test_a_stack_without_deployments_has_nothing_to_roll_back() -> None:
    with pytest.raises(DeliveryRefusedError, match="has had no deployment"):
        roll_back(simulation().environment(), actor="me", reason="panic")


def test_a_rollback_to_an_unhealthy_fleet_is_escalated() -> None:
    stack = simulation()
    deploy(stack.environment(), blue_green())
    stack.up["blue-1"] = False
    with pytest.raises(RollbackFailedError, match="blue is not healthy"):
        roll_back(stack.environment(), actor="me", reason="latency")
    assert any(event == "escalate" for event, _ in stack.events)
