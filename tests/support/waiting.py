"""Waits of tests: a condition and a generous deadline instead of a fixed pause."""

from __future__ import annotations

import time
from collections.abc import Callable

from tenacity import RetryError, Retrying, retry_if_not_result, stop_after_delay

PATIENCE_S = 180.0  # a busy machine takes many times as long as a quiet one


def until(condition: Callable[[], object], what: str, *, timeout_s: float = PATIENCE_S, pause_s: float = 0.02) -> None:
    """Wait until a condition holds; `what` names it in the error.

    It pauses for as long as it looked, at least `pause_s`: a look that runs a command would keep a core busy.

    Raises:
        TimeoutError: the condition does not hold after `timeout_s` seconds.
    """
    looked_s = 0.0

    def look() -> object:
        nonlocal looked_s
        begun = time.monotonic()
        try:
            return condition()
        finally:
            looked_s = time.monotonic() - begun

    waiting = Retrying(
        stop=stop_after_delay(timeout_s), wait=lambda _state: max(pause_s, looked_s), retry=retry_if_not_result(bool)
    )
    try:
        waiting(look)
    except RetryError:
        raise TimeoutError(f"waited {timeout_s:g} s for {what}") from None
