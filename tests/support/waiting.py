"""Waits of tests: a condition and a generous deadline instead of a fixed pause."""

from __future__ import annotations

from collections.abc import Callable

from tenacity import RetryError, Retrying, retry_if_not_result, stop_after_delay, wait_fixed

PATIENCE_S = 180.0  # a busy machine takes many times as long as a quiet one


def until(condition: Callable[[], object], what: str, *, timeout_s: float = PATIENCE_S, pause_s: float = 0.02) -> None:
    """Wait until a condition holds; `what` names it in the error.

    Raises:
        TimeoutError: the condition does not hold after `timeout_s` seconds.
    """
    waiting = Retrying(stop=stop_after_delay(timeout_s), wait=wait_fixed(pause_s), retry=retry_if_not_result(bool))
    try:
        waiting(condition)
    except RetryError:
        raise TimeoutError(f"waited {timeout_s:g} s for {what}") from None
