"""The library's locks: one deployment at a time per database, one bootstrap at a time.

Session advisory locks, so PostgreSQL frees them when the holder's connection ends, however it ends. Needs a direct
connection: behind a transaction pooler a session lock belongs to nobody.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import psycopg

from observatory.database.errors import LockHeldError

# Two-key form, so that no application's single-key lock can collide: "obsv" in ASCII, then which of our locks.
LOCK_CLASS = 0x6F627376


class AdvisoryLock(NamedTuple):
    """One of our locks: its second key, and its name in messages."""

    key: int
    name: str


MIGRATION_LOCK = AdvisoryLock(1, "migration lock")
BOOTSTRAP_LOCK = AdvisoryLock(2, "bootstrap lock")
DEPLOYMENT_LOCK = AdvisoryLock(3, "deployment lock")

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

    Polls instead of queueing: a session that waits inside PostgreSQL for a lock keeps a snapshot, which CREATE INDEX
    CONCURRENTLY waits for, and both would wait for ever.

    Args:
        connection: an autocommit connection; the lock lives no longer than it.
        lock: which, one of this module's.
        wait_s: how long to wait for another holder before giving up, in seconds.
        on_wait: called once with who holds the lock, when it is not free at once.

    Raises:
        LockHeldError: another session holds it for longer than `wait_s`.
    """
    _acquire(connection, lock, wait_s, on_wait)
    try:
        yield
    finally:
        # The lock ends with the connection anyway, which takes no statement any more when it is broken or when the
        # extension was updated under it.
        with contextlib.suppress(psycopg.Error):
            connection.execute("SELECT pg_advisory_unlock(%s, %s)", [LOCK_CLASS, lock.key])


def _acquire(
    connection: psycopg.Connection, lock: AdvisoryLock, wait_s: float, on_wait: Callable[[str], None] | None
) -> None:
    deadline = time.monotonic() + wait_s
    told = False
    while not _try(connection, lock):
        holder = _holder(connection, lock)
        if on_wait and not told:
            on_wait(holder)
            told = True
        if time.monotonic() >= deadline:
            raise LockHeldError(
                f"The {lock.name} is held by {holder}; waited {wait_s:g} s. Wait for that session to end; if it "
                "hangs, end it with SELECT pg_terminate_backend(pid)"
            )
        time.sleep(min(random.uniform(*_POLL_S), max(0.0, deadline - time.monotonic())))  # noqa: S311 - only jitter


def _try(connection: psycopg.Connection, lock: AdvisoryLock) -> bool:
    row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", [LOCK_CLASS, lock.key]).fetchone()
    return bool(row and row[0])


def _holder(connection: psycopg.Connection, lock: AdvisoryLock) -> str:
    row = connection.execute(_HOLDER, [LOCK_CLASS, lock.key]).fetchone()
    if row is None:
        return "a session that has just ended"
    pid, application, user, since = row
    return f"pid {pid} ({application or 'unnamed'}, user {user}) since {since:%Y-%m-%d %H:%M:%S %Z}"
