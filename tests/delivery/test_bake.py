"""Gates: what lets a step pass, fails it, or leaves it without a verdict."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from observatory.delivery.deployment import deploy
from observatory.delivery.environment import Sample
from observatory.delivery.errors import RolledBackError
from tests.delivery.environment import BAD, GOOD, simulation
from tests.delivery.faults import OUTAGE, blue_green


def test_the_third_failed_evaluation_in_a_row_rolls_back() -> None:
    stack = simulation(samples=iter([GOOD, BAD, BAD, GOOD, BAD, BAD, BAD]))
    with pytest.raises(RolledBackError, match=r"50\.00% errors"):
        deploy(stack.environment(), blue_green(bake_s=600.0))
    assert stack.live == {"blue": 100, "green": 0}
    assert stack.time == 7 * 5
    document = stack.store.document
    assert document is not None
    assert document.green.version == "v0.1.0"
    assert document.deployment is not None
    assert document.deployment.status == "rolled-back"


def test_slow_evaluations_do_not_delay_the_next_ones() -> None:
    def slow() -> Iterator[Sample]:
        while True:
            stack.time += 3.0
            yield BAD

    stack = simulation(samples=slow())
    with pytest.raises(RolledBackError):
        deploy(stack.environment(), blue_green(bake_s=600.0))
    assert stack.time == 3 * 5 + 3


def test_missing_data_never_promotes_and_rolls_back_at_the_deadline() -> None:
    stack = simulation(samples=itertools.repeat(None))
    with pytest.raises(RolledBackError, match="no verdict"):
        deploy(stack.environment(), blue_green(bake_s=10.0))
    assert stack.time > 60
    assert stack.live["green"] == 0


def test_nan_is_not_a_pass() -> None:
    nan = Sample(requests=500, error_ratio=float("nan"), p95_s=0.01, saturation=0.1, restarts=0)
    stack = simulation(samples=itertools.repeat(nan))
    with pytest.raises(RolledBackError, match="error_ratio is NaN"):
        deploy(stack.environment(), blue_green(bake_s=10.0))


def test_too_few_requests_are_completed_by_synthetic_ones() -> None:
    little = Sample(requests=1, error_ratio=0.0, p95_s=0.01, saturation=0.0, restarts=0)
    stack = simulation(samples=iter([little, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD]))
    deploy(stack.environment(), blue_green())
    assert stack.probed == 20


def test_a_firing_alert_of_the_fleet_fails_a_step() -> None:
    alarmed = Sample(
        requests=0, error_ratio=0.0, p95_s=None, saturation=0.0, restarts=0, alerts=("StorageServiceDown",)
    )
    stack = simulation(samples=itertools.repeat(alarmed))
    with pytest.raises(RolledBackError, match="StorageServiceDown"):
        deploy(stack.environment(), blue_green())


def test_a_database_outage_pauses_the_bake() -> None:
    stack = simulation(samples=iter([GOOD, *[OUTAGE] * 8]))
    deploy(stack.environment(), blue_green())
    assert stack.live == {"blue": 0, "green": 100}
    assert stack.time >= 30 + 8 * 5
    reasons = [details["reasons"] for event, details in stack.events if event == "gate"]
    assert ("the database is down, or was just now: see the alert StorageDatabaseDown",) in reasons
    assert stack.probed == 0


def test_a_database_outage_beyond_the_deadline_rolls_back() -> None:
    stack = simulation(samples=itertools.repeat(OUTAGE))
    with pytest.raises(RolledBackError, match=r"no verdict for .* StorageDatabaseDown"):
        deploy(stack.environment(), blue_green())
