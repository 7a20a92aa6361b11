"""Advisory locks of the library: one deployment at a time for each database, one bootstrap for each server.

Session locks: PostgreSQL releases them when the holder's connection ends, also after a crash. They need a direct
connection, because a transaction pooler moves sessions between clients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import NamedTuple

import psycopg

from observatory.database.errors import LockHeldError

# The two-key form cannot collide with an application's single-key lock: "obsv" in ASCII, then the number of the lock.
LOCK_CLASS = 0x6F627376


class AdvisoryLock(NamedTuple):
    """A lock of the library: its second key, and its name in messages."""

    key: int
    name: str


class Holder(NamedTuple):
    """The session that holds a lock; its application name says what it does, and in the deployment lock for whom."""

    pid: int
    application: str
    user: str
    since: datetime

    def __str__(self) -> str:
        """Return the session as it is named in messages."""
        since = f"{self.since:%Y-%m-%d %H:%M:%S %Z}"
        return f"pid {self.pid} ({self.application or 'unnamed'}, user {self.user}) since {since}"


MIGRATION_LOCK = AdvisoryLock(1, "migration lock")
BOOTSTRAP_LOCK = AdvisoryLock(2, "bootstrap lock")
DEPLOYMENT_LOCK = AdvisoryLock(3, "deployment lock")
SAMPLE_LOCK = AdvisoryLock(4, "lock of the masked sample")
FLASHBACK_LOCK = AdvisoryLock(5, "lock of the restore of missing rows")

_POLL_S = (0.05, 0.25)

_HOLDER = """
    SELECT a.pid, a.application_name, a.usename, a.backend_start
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.classid = %s AND l.objid = %s AND l.objsubid = 2
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@contextlib.contextmanager
def session_lock(
    connection: psycopg.Connection, lock: AdvisoryLock, *, wait_s: float, on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock inside the block.

    Polls and does not queue. A session that queues inside PostgreSQL keeps a snapshot, and CREATE INDEX CONCURRENTLY
    of the lock's holder waits for that snapshot: a deadlock.

    Args:
        connection: an autocommit connection; the lock ends with it at the latest.
        lock: one of this module's locks.
        wait_s: seconds to wait for another holder.
        on_wait: called once with a description of the holder, when the lock is not free at once.

    Raises:
        LockHeldError: another session held the lock for longer than `wait_s`.
    """
    _acquire(connection, lock, wait_s, on_wait)
    try:
        yield
    finally:
        # Fails on a broken connection and after an update of the extension; the lock then ends with the connection.
        with contextlib.suppress(psycopg.Error):
            connection.execute("SELECT pg_advisory_unlock(%s, %s)", [LOCK_CLASS, lock.key])


def _acquire(
    connection: psycopg.Connection, lock: AdvisoryLock, wait_s: float, on_wait: Callable[[str], None] | None
) -> None:
    if try_lock(connection, lock):
        return
    if on_wait:
        on_wait(_described(connection, lock))
    if not poll_lock(connection, lock, wait_s):
        raise LockHeldError(
            f"The {lock.name} is held by {_described(connection, lock)}; waited {wait_s:g} s. Wait until that session "
            "ends; if it hangs, end it with SELECT pg_terminate_backend(pid)"
        )


def poll_lock(connection: psycopg.Connection, lock: AdvisoryLock, wait_s: float) -> bool:
    """Try to take a lock for some seconds; return whether this session has it."""
    # Imported here: it takes 25 ms, and a free lock does not need it.
    from tenacity import Retrying, retry_if_result, stop_after_delay, wait_random  # noqa: PLC0415

    attempts = Retrying(
        stop=stop_after_delay(wait_s),
        wait=wait_random(*_POLL_S),
        retry=retry_if_result(lambda acquired: not acquired),
        retry_error_callback=lambda _: False,
    )
    return bool(attempts(try_lock, connection, lock))


def try_lock(connection: psycopg.Connection, lock: AdvisoryLock) -> bool:
    """Try to take a lock once; return whether this session has it."""
    row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", [LOCK_CLASS, lock.key]).fetchone()
    return bool(row and row[0])


def is_held(connection: psycopg.Connection, lock: AdvisoryLock) -> bool:
    """Return whether a session holds the lock."""
    return connection.execute(_HOLDER, [LOCK_CLASS, lock.key]).fetchone() is not None


def holder_of(connection: psycopg.Connection, lock: AdvisoryLock) -> Holder | None:
    """Return the session that holds a lock, None if it is free."""
    row = connection.execute(_HOLDER, [LOCK_CLASS, lock.key]).fetchone()
    return Holder(*row) if row else None


def _described(connection: psycopg.Connection, lock: AdvisoryLock) -> str:
    return str(holder_of(connection, lock) or "a session that has just ended")
