"""The sequential test: known rates of false alarms, no decision by one burst, and evidence that stays."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observatory.delivery.sequential import RatioTest, exceeds, upper_bound

THRESHOLD = math.log(1000)


@given(bad=st.floats(0, 500), requests=st.floats(0, 500), allowed=st.floats(0.0001, 0.5))
def test_one_interval_never_decides(bad: float, requests: float, allowed: float) -> None:
    once = RatioTest(threshold=THRESHOLD).add(min(bad, requests), requests, allowed)
    assert not once.rejected
    assert not once.add(min(bad, requests), requests, allowed).rejected


@given(requests=st.integers(0, 10_000), allowed=st.floats(0.0001, 0.5))
def test_requests_without_a_bad_one_never_raise_the_evidence(requests: int, allowed: float) -> None:
    assert RatioTest(threshold=THRESHOLD).add(0, requests, allowed).evidence <= 1e-9


def test_bad_bad_good_for_ever_is_rejected() -> None:
    test = RatioTest(threshold=THRESHOLD)
    for interval in range(60):
        test = test.add(0 if interval % 3 == 2 else 5, 100, 0.01)
        if test.rejected:
            break
    assert interval < 10


def test_an_empty_interval_changes_nothing() -> None:
    test = RatioTest(threshold=THRESHOLD).add(5, 100, 0.01)
    assert test.add(0, 0, 0.01).evidence == pytest.approx(test.evidence)


def test_an_equal_version_is_rejected_at_most_at_the_stated_rate() -> None:
    draw, alpha = random.Random(1), 0.05  # noqa: S311 - no secret
    rejected = 0
    for _ in range(400):
        test = RatioTest(threshold=-math.log(alpha))
        for _interval in range(40):
            test = test.add(sum(draw.random() < 0.02 for _ in range(25)), 25, 0.02)
            if test.rejected:
                rejected += 1
                break
    assert rejected <= 0.05 * 400 + 3 * math.sqrt(400 * 0.05 * 0.95)


@pytest.mark.parametrize(("bad", "requests"), [(0, 0), (0, 100), (3, 100), (100, 100)])
def test_the_upper_bound_is_above_the_share(bad: int, requests: int) -> None:
    bound = upper_bound(bad, requests, 0.05)
    assert bad / max(requests, 1) <= bound <= 1


def test_the_upper_bound_without_a_bad_request_is_exact() -> None:
    assert upper_bound(0, 1000, 0.05) == pytest.approx(1 - 0.05 ** (1 / 1000))


def test_a_single_sample_contradicts_a_share_only_with_enough_requests() -> None:
    assert exceeds(10, 100, 0.01, 0.01)
    assert not exceeds(1, 10, 0.01, 0.01)
    assert not exceeds(0, 0, 0.01, 0.01)
