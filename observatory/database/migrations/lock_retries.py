"""Retries of a migration that did not get its locks.

An attempt waits for a lock for half a second, because writers queue behind it. The next one follows after a jittered
exponential backoff. PostgreSQL cancels an ordinary autovacuum that blocks another session, but only after that session
has waited for `deadlock_timeout`. So where only autovacuum blocks, one more attempt follows at once that waits longer.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from observatory.database.error_translation import error_summary
from observatory.database.errors import LockTimeoutError
from observatory.database.migrations.blocking_sessions import BlockingSession

BACKOFF_S = (1, 60)
LONGEST_DEADLOCK_TIMEOUT_MS = 5000  # writers queue behind the attempt that waits for it

# As long as PostgreSQL needs to cancel an autovacuum, and then the session's own lock timeout.
_OUTLAST_AUTOVACUUM = """
    SELECT set_config('lock_timeout', (deadlock.setting::int + own.setting::int)::text, false)
    FROM pg_settings AS deadlock, pg_settings AS own
    WHERE deadlock.name = 'deadlock_timeout' AND own.name = 'lock_timeout' AND own.setting::int > 0
      AND deadlock.setting::int <= %s
"""


class AutovacuumBlocksError(LockTimeoutError):
    """Only ordinary autovacuums held the locks; PostgreSQL cancels them for a session that waits longer."""


def outlast_autovacuum(connection: psycopg.Connection) -> None:
    """Raise the session's lock timeout so that PostgreSQL cancels an autovacuum that blocks it.

    Does nothing where `deadlock_timeout` is longer than `LONGEST_DEADLOCK_TIMEOUT_MS`.
    """
    connection.execute(_OUTLAST_AUTOVACUUM, [LONGEST_DEADLOCK_TIMEOUT_MS])


def run_with_lock_retries(attempt: Callable[[bool], None], *, retry: int, on_retry: Callable[[str], None]) -> None:
    """Call a function again after each `LockTimeoutError`.

    Args:
        attempt: called with True where it has to call `outlast_autovacuum` first.
        retry: highest number of retries; an attempt that outlasts an autovacuum does not count.
        on_retry: called before each further attempt with the reason and the time until then.
    """
    try:  # tenacity only after a failure: it takes as long as a small file
        _attempt_past_autovacuum(attempt, on_retry)
    except LockTimeoutError as error:
        _retry(attempt, first=error, retry=retry, on_retry=on_retry)


def lock_timeout_error(place: str, error: psycopg.Error, sessions: tuple[BlockingSession, ...]) -> LockTimeoutError:
    """Return the error of a statement that did not get its locks: its place, and the sessions that held them."""
    named = "; ".join(map(str, sessions)) or "sessions that ended before they were identified"
    message = f"{place}: {error_summary(error)}; blocked by {named}. Nothing of the statement was applied. "
    if any(session.prevents_wraparound for session in sessions):
        return LockTimeoutError(message + _wraparound_remedy(sessions))
    if sessions and all(session.autovacuum for session in sessions):
        return AutovacuumBlocksError(message + _autovacuum_remedy(sessions))
    return LockTimeoutError(f"{message}Wait until those sessions end, or end them, then run again")


def _wraparound_remedy(sessions: tuple[BlockingSession, ...]) -> str:
    return (
        "PostgreSQL does not cancel an autovacuum that prevents wraparound: wait until it ends (its progress is in "
        f"pg_stat_progress_vacuum), then run again. Or {_cancel(sessions)}; it starts again within autovacuum_naptime "
        "and must not be ended every time"
    )


def _autovacuum_remedy(sessions: tuple[BlockingSession, ...]) -> str:
    return (
        "PostgreSQL cancels an autovacuum for a session that waits longer than deadlock_timeout. The migration waits "
        f"that long where it is {LONGEST_DEADLOCK_TIMEOUT_MS // 1000} s or less (SHOW deadlock_timeout). Run again, or "
        f"{_cancel(sessions)}"
    )


def _cancel(sessions: tuple[BlockingSession, ...]) -> str:
    calls = ", ".join(f"pg_cancel_backend({session.pid})" for session in sessions if session.autovacuum)
    return f"end it as superuser with SELECT {calls} and run again at once"


def _attempt_past_autovacuum(attempt: Callable[[bool], None], on_retry: Callable[[str], None]) -> None:
    try:
        attempt(False)
    except AutovacuumBlocksError as error:
        on_retry(f"the next attempt waits until PostgreSQL cancels the autovacuum: {error}")
        attempt(True)


def _retry(
    attempt: Callable[[bool], None], *, first: LockTimeoutError, retry: int, on_retry: Callable[[str], None]
) -> None:
    """Call a function again after its first attempt failed."""
    failed = [first]

    def call() -> None:
        if failed:
            raise failed.pop()
        _attempt_past_autovacuum(attempt, on_retry)

    retrying = Retrying(
        stop=stop_after_attempt(retry + 1),
        wait=wait_random_exponential(multiplier=2 * BACKOFF_S[0], min=BACKOFF_S[0], max=BACKOFF_S[1]),
        retry=retry_if_exception_type(LockTimeoutError),
        before_sleep=lambda state: on_retry(_retry_detail(state)),
        reraise=True,
    )
    retrying(call)


def _retry_detail(state: RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome else None
    return f"attempt {state.attempt_number} of the file failed, next in {state.upcoming_sleep:.1f} s: {error}"
