"""Waits of a delivery, by its environment's clock."""

from __future__ import annotations

import operator
from collections.abc import Callable

from tenacity import Retrying, retry_if_exception_type, retry_if_result, stop_after_attempt, wait_fixed

from observatory.delivery.environment import Clock

POLL_S = 1.0  # the balancer checks its servers as often


def wait_until(condition: Callable[[], bool], *, clock: Clock, timeout_s: float) -> bool:
    """Check a condition every second until it holds or the timeout has passed; return whether it holds."""
    deadline = clock.now() + timeout_s
    attempts = Retrying(
        retry=retry_if_result(operator.not_),
        stop=lambda _state: clock.now() >= deadline,
        wait=wait_fixed(POLL_S),
        sleep=clock.sleep,
        retry_error_callback=lambda _state: False,
    )
    return attempts(condition)


def retry(work: Callable[[], None], *errors: type[Exception], clock: Clock, attempts: int) -> None:
    """Repeat `work` every second while it raises one of `errors`; the last attempt's error is raised."""
    Retrying(
        retry=retry_if_exception_type(errors),
        stop=stop_after_attempt(attempts),
        wait=wait_fixed(POLL_S),
        sleep=clock.sleep,
        reraise=True,
    )(work)
