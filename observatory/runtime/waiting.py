"""Waiting for a condition."""

from __future__ import annotations

import math
from collections.abc import Callable

PAUSE_S = 0.05


def wait_until(condition: Callable[[], bool], timeout: float = math.inf, *, pause: float = PAUSE_S) -> bool:
    """Wait until `condition` holds, at most `timeout` seconds; return whether it held in the end.

    It is evaluated at least once, and every `pause` seconds after that. What it raises ends the wait.
    """
    from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed  # noqa: PLC0415 - only to wait

    if condition():
        return True
    attempts = Retrying(
        retry=retry_if_result(lambda held: not held),
        stop=stop_after_delay(timeout),
        wait=wait_fixed(pause),
        retry_error_callback=lambda _state: False,
    )
    return bool(attempts(condition))
