"""Retries of a delivery, by its environment's clock."""

from __future__ import annotations

from collections.abc import Callable

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from observatory.waiting import Clock

POLL_S = 1.0  # the balancer checks its servers as often


def retry(work: Callable[[], None], *errors: type[Exception], clock: Clock, attempts: int) -> None:
    """Repeat `work` every second while it raises one of `errors`; the last attempt's error is raised."""
    Retrying(
        retry=retry_if_exception_type(errors),
        stop=stop_after_attempt(attempts),
        wait=wait_fixed(POLL_S),
        sleep=clock.sleep,
        reraise=True,
    )(work)
