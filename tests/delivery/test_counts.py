"""Counts of requests: their difference, sum and quantiles."""

from __future__ import annotations

import math

import pytest

from observatory.delivery.counts import RouteCounts, all_routes, difference, total

EARLY = {"GET /v1/traces": RouteCounts(statuses={"200": 90.0, "503": 1.0}, durations={0.1: 80.0, math.inf: 91.0})}
LATE = {
    "GET /v1/traces": RouteCounts(
        statuses={"200": 180.0, "503": 1.0, "404": 7.0},
        unanswered={"timeout": 2.0},
        durations={0.1: 160.0, math.inf: 190.0},
    ),
    "GET /v1/costs": RouteCounts(statuses={"500": 3.0}),
}


def test_the_difference_of_two_readings_has_the_requests_between_them() -> None:
    found = difference(LATE, EARLY)
    traces = found["GET /v1/traces"]
    assert traces.statuses == {"200": 90.0, "503": 0.0, "404": 7.0}
    assert (traces.requests, traces.failures, traces.timed) == (99.0, 2.0, 99.0)
    assert found["GET /v1/costs"].failures == 3.0


def test_all_routes_are_summed() -> None:
    whole = all_routes(LATE)
    assert (whole.requests, whole.failures) == (193.0, 6.0)
    assert total([EARLY, EARLY])["GET /v1/traces"].requests == 182.0
    assert all_routes({}).requests == 0.0


def test_slow_requests_and_quantiles_follow_the_bounds_of_the_histogram() -> None:
    late = LATE["GET /v1/traces"]
    assert late.slower_than(0.1) == 30.0
    assert late.slower_than(0.2) == 0.0
    assert late.quantile(0.5) == pytest.approx(0.1 * 95 / 160)
    assert late.quantile(0.95) == 0.1
    assert RouteCounts().quantile(0.5) is None
