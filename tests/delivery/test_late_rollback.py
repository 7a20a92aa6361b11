"""Alerts that roll back a promoted version: of its fleet, within the window, with a healthy fleet to return to."""

from __future__ import annotations

from typing import Any

import pytest

from observatory.delivery.deployment import deploy
from observatory.delivery.late_rollback import reason_not_to_roll_back
from observatory.delivery.rollback import roll_back
from tests.delivery.environment import GOOD, Interval, Simulation, simulation
from tests.delivery.faults import OUTAGE, blue_green

ALARMED = Interval(alerts=("StorageErrorBudgetFastBurn",))


def promoted(**options: Any) -> Simulation:
    stack = simulation(**options)
    deploy(stack.environment(), blue_green())
    stack.interval = ALARMED
    return stack


def against(stack: Simulation, *, fleet: Any = "green", ago_s: float | None = 60) -> str | None:
    document = stack.store.document
    assert document is not None
    when = None if ago_s is None else stack.wall() - ago_s
    return reason_not_to_roll_back(stack.environment(), document, fleet=fleet, promoted=when, window_s=3600)


def test_an_alert_of_the_promoted_fleet_rolls_it_back() -> None:
    assert against(promoted()) is None


def test_unavailable_metrics_explain_nothing() -> None:
    stack = promoted()
    stack.interval = None
    assert against(stack) is None


@pytest.mark.parametrize(("fleet", "ago_s"), [("blue", 60), ("green", 3601), ("green", None)])
def test_an_alert_of_another_fleet_or_time_rolls_nothing_back(fleet: str, ago_s: float | None) -> None:
    assert against(promoted(), fleet=fleet, ago_s=ago_s)


def test_a_database_outage_rolls_nothing_back() -> None:
    stack = promoted()
    stack.interval = OUTAGE
    assert "database" in str(against(stack))


def test_an_alert_that_has_ended_rolls_nothing_back() -> None:
    stack = promoted()
    stack.interval = GOOD
    assert "is firing" in str(against(stack))


def test_an_unhealthy_source_fleet_prevents_the_rollback() -> None:
    stack = promoted()
    stack.up["blue-1"] = False
    assert "blue, which would get the traffic, is not healthy" in str(against(stack))


def test_a_rolled_back_deployment_is_not_rolled_back_again() -> None:
    stack = promoted()
    roll_back(stack.environment(), actor="me", reason="latency")
    assert "the last deployment did not promote green" in str(against(stack))
