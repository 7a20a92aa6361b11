"""Waiting for a condition: the one poll helper."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")

PAUSE_S = 0.05


class Clock(Protocol):
    """Time; simulated in tests."""

    def now(self) -> float:
        """Return seconds; only differences count."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class _MonotonicClock:
    """Python's monotonic clock."""

    now = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)


def poll(
    read: Callable[[], T],
    *,
    until: Callable[[T], bool],
    timeout_s: float,
    interval_s: float,
    clock: Clock | None = None,
) -> T:
    """Call `read` until its result is accepted or the time is over; return the last result.

    Args:
        read: returns the current state; an exception ends the wait.
        until: whether a result ends the wait.
        timeout_s: after so many seconds the last result is returned, accepted or not.
        interval_s: seconds between two calls.
        clock: measures the time; the machine's monotonic clock by default.
    """
    clock = clock or _MonotonicClock()
    deadline = clock.now() + timeout_s
    found = read()
    if until(found) or clock.now() >= deadline:
        return found
    from tenacity import Retrying, retry_if_result, wait_fixed  # noqa: PLC0415 - only for a real wait

    clock.sleep(interval_s)
    attempts = Retrying(
        retry=retry_if_result(lambda result: not until(result)),
        stop=lambda _: clock.now() >= deadline,
        wait=wait_fixed(interval_s),
        sleep=clock.sleep,
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else found,
    )
    result: T = attempts(read)
    return result


def wait_until(
    condition: Callable[[], bool],
    timeout_s: float = math.inf,
    *,
    interval_s: float = PAUSE_S,
    clock: Clock | None = None,
) -> bool:
    """Wait until a condition holds or the time is over; return whether it holds. It is evaluated at least once."""
    return poll(condition, until=bool, timeout_s=timeout_s, interval_s=interval_s, clock=clock)
