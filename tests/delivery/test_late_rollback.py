"""Which alerts roll a promoted version back: those of the fleet that serves, soon enough, with a way back."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from observatory.delivery.deployment import deploy
from observatory.delivery.environment import Sample
from observatory.delivery.late_rollback import reason_not_to_roll_back
from observatory.delivery.rollback import roll_back
from tests.delivery.environment import GOOD, Simulation, simulation
from tests.delivery.faults import blue_green
from tests.delivery.test_deployment import OUTAGE

ALARMED = Sample(
    requests=500, error_ratio=0.0, p95_s=0.01, saturation=0.1, restarts=0, alerts=("StorageErrorBudgetFastBurn",)
)


def promoted(**options: Any) -> Simulation:
    stack = simulation(**options)
    deploy(stack.environment(), blue_green())
    stack.samples = itertools.repeat(ALARMED)
    return stack


def against(stack: Simulation, *, fleet: Any = "green", ago_s: float | None = 60) -> str | None:
    document = stack.store.document
    assert document is not None
    when = None if ago_s is None else stack.time - ago_s
    return reason_not_to_roll_back(stack.environment(), document, fleet=fleet, promoted=when, window_s=3600)


def test_an_alert_of_what_was_promoted_rolls_it_back() -> None:
    assert against(promoted()) is None


def test_metrics_that_cannot_be_asked_explain_nothing() -> None:
    stack = promoted()
    stack.samples = itertools.repeat(None)
    assert against(stack) is None


@pytest.mark.parametrize(("fleet", "ago_s"), [("blue", 60), ("green", 3601), ("green", None)])
def test_an_alert_of_another_fleet_or_time_is_not_the_deployments(fleet: str, ago_s: float | None) -> None:
    assert against(promoted(), fleet=fleet, ago_s=ago_s)


def test_an_outage_of_the_database_is_not_the_versions_fault() -> None:
    stack = promoted()
    stack.samples = itertools.repeat(OUTAGE)
    assert "database" in str(against(stack))


def test_an_alert_that_has_ended_rolls_nothing_back() -> None:
    stack = promoted()
    stack.samples = itertools.repeat(GOOD)
    assert "fires any more" in str(against(stack))


def test_without_a_healthy_fleet_to_go_back_to_nothing_is_done() -> None:
    stack = promoted()
    stack.up["blue-1"] = False
    assert "blue, which would serve, is not healthy" in str(against(stack))


def test_what_was_rolled_back_is_not_again() -> None:
    stack = promoted()
    roll_back(stack.environment(), actor="me", reason="asked for")
    assert "not what the last deployment promoted" in str(against(stack))
