"""The migration lock: one deployment at a time per database.

A session advisory lock, so PostgreSQL frees it when the holder's connection ends, however it ends. Needs a direct
connection: behind a transaction pooler a session lock belongs to nobody.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator

import psycopg

from observatory.database.errors import LockHeldError

# Two-key form, so that no application's single-key lock can collide: "obsv" in ASCII, then which of our locks.
LOCK_CLASS = 0x6F627376
MIGRATION_LOCK = 1

_POLL_S = (0.05, 0.25)

_HOLDER = """
    SELECT a.pid, a.application_name, a.usename, a.backend_start
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.classid = %s AND l.objid = %s AND l.objsubid = 2
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@contextlib.contextmanager
def migration_lock(
    connection: psycopg.Connection, *, wait_s: float, on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock inside the block.

    Polls instead of queueing: a session that waits inside PostgreSQL for a lock keeps a snapshot, which CREATE INDEX
    CONCURRENTLY waits for, and both would wait for ever.

    Args:
        connection: an autocommit connection; the lock lives no longer than it.
        wait_s: how long to wait for another holder before giving up, in seconds.
        on_wait: called once with who holds the lock, when it is not free at once.

    Raises:
        LockHeldError: another session holds it for longer than `wait_s`.
    """
    _acquire(connection, wait_s, on_wait)
    try:
        yield
    finally:
        if not connection.broken:
            connection.execute("SELECT pg_advisory_unlock(%s, %s)", [LOCK_CLASS, MIGRATION_LOCK])


def _acquire(connection: psycopg.Connection, wait_s: float, on_wait: Callable[[str], None] | None) -> None:
    deadline = time.monotonic() + wait_s
    told = False
    while not _try(connection):
        holder = _holder(connection)
        if on_wait and not told:
            on_wait(holder)
            told = True
        if time.monotonic() >= deadline:
            raise LockHeldError(
                f"The migration lock is held by {holder}; waited {wait_s:g} s. Wait for that deployment to end; if it "
                "hangs, end it with SELECT pg_terminate_backend(pid)"
            )
        time.sleep(min(random.uniform(*_POLL_S), max(0.0, deadline - time.monotonic())))  # noqa: S311 - only jitter


def _try(connection: psycopg.Connection) -> bool:
    row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", [LOCK_CLASS, MIGRATION_LOCK]).fetchone()
    return bool(row and row[0])


def _holder(connection: psycopg.Connection) -> str:
    row = connection.execute(_HOLDER, [LOCK_CLASS, MIGRATION_LOCK]).fetchone()
    if row is None:
        return "a session that has just ended"
    pid, application, user, since = row
    return f"pid {pid} ({application or 'unnamed'}, user {user}) since {since:%Y-%m-%d %H:%M:%S %Z}"
