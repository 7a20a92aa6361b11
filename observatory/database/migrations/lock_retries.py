"""Retries of a migration that did not get its locks, with jittered exponential backoff."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from observatory.database.error_translation import error_summary
from observatory.database.errors import LockTimeoutError
from observatory.database.migrations.blocking_sessions import BlockingSession

BACKOFF_S = (1, 60)


def lock_retries(retry: int, on_retry: Callable[[str], None]) -> Retrying:
    """Return a caller that calls a function again after each `LockTimeoutError`.

    Args:
        retry: highest number of retries.
        on_retry: called before each wait with the reason and the time until the next attempt.
    """
    return Retrying(
        stop=stop_after_attempt(retry + 1),
        wait=wait_random_exponential(multiplier=2 * BACKOFF_S[0], min=BACKOFF_S[0], max=BACKOFF_S[1]),
        retry=retry_if_exception_type(LockTimeoutError),
        before_sleep=lambda state: on_retry(_retry_detail(state)),
        reraise=True,
    )


def lock_timeout_error(place: str, error: psycopg.Error, sessions: tuple[BlockingSession, ...]) -> LockTimeoutError:
    """Return the error of a statement that did not get its locks: its place, and the sessions that held them."""
    named = "; ".join(map(str, sessions)) or "sessions that ended before they were identified"
    return LockTimeoutError(
        f"{place}: {error_summary(error)}; blocked by {named}. Nothing of the statement was applied. Wait until those "
        "sessions end, or end them, then run again"
    )


def _retry_detail(state: RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome else None
    return f"attempt {state.attempt_number} of the file failed, next in {state.upcoming_sleep:.1f} s: {error}"
