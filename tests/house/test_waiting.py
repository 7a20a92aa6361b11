"""A wait ends with the condition, or with its time."""

from __future__ import annotations

import itertools

from observatory.waiting import poll


class Clock:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def test_the_first_accepted_result_ends_the_wait() -> None:
    clock, numbers = Clock(), itertools.count()
    assert poll(lambda: next(numbers), until=lambda n: n == 3, timeout_s=60, interval_s=1, clock=clock) == 3
    assert clock.time == 3


def test_an_accepted_first_result_is_returned_without_a_wait() -> None:
    clock = Clock()
    assert poll(lambda: "ready", until=bool, timeout_s=60, interval_s=1, clock=clock) == "ready"
    assert clock.time == 0


def test_after_the_timeout_the_last_result_is_returned() -> None:
    clock, numbers = Clock(), itertools.count()
    assert poll(lambda: next(numbers), until=lambda _: False, timeout_s=5, interval_s=1, clock=clock) == 5
    assert clock.time == 5
