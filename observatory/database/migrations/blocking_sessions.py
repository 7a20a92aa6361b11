"""Identifies the sessions that block a statement while it waits for a lock.

PostgreSQL's lock timeout does not name the holder of the lock, and afterwards the holder may have released it. So a
second connection queries the blocking sessions while the first one waits.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, NamedTuple, Self

import psycopg

from observatory.database.connection import connect
from observatory.database.errors import DatabaseError
from observatory.database.excerpts import excerpt

_INTERVAL_S = 0.05
_QUERY_LENGTH = 120
_TO_PREVENT_WRAPAROUND = "(to prevent wraparound)"  # autovac_report_activity() in PostgreSQL's autovacuum.c

_BLOCKING = """
    SELECT a.pid, a.usename, a.application_name, a.state, a.query,
           clock_timestamp() - coalesce(a.xact_start, a.query_start, a.backend_start),
           coalesce(a.backend_type = 'autovacuum worker', a.usesysid IS NULL)
    FROM unnest(pg_blocking_pids(%s)) AS blocking(pid) JOIN pg_stat_activity a USING (pid) ORDER BY 6 DESC
"""
# Where nobody watched: whose transaction is as old as the wait, holds more than a reader's lock, and waits for none.
# The age is that at the statement's start, the same for each of a session's locks.
_HOLDING = """
    SELECT DISTINCT a.pid, a.usename, a.application_name, a.state, a.query, statement_timestamp() - a.xact_start,
           coalesce(a.backend_type = 'autovacuum worker', a.usesysid IS NULL)
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.granted AND l.locktype = 'relation' AND l.mode <> 'AccessShareLock' AND a.datname = current_database()
      AND a.pid <> pg_backend_pid() AND a.wait_event_type IS DISTINCT FROM 'Lock'
      AND a.xact_start <= clock_timestamp() - current_setting('lock_timeout')::interval
    ORDER BY 6 DESC LIMIT 5
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockingSession:
    """A session that held a lock for which a migration or a verification waited.

    Attributes:
        pid: its process id.
        user: its role; `?` where the server has none for it.
        application: its name of itself.
        state: `active`, `idle in transaction`.
        query: the running one, or the last.
        age: of its transaction.
        autovacuum: it is a worker of autovacuum.
    """

    pid: int
    user: str
    application: str
    state: str
    query: str
    age: timedelta
    autovacuum: bool = False

    @property
    def prevents_wraparound(self) -> bool:
        """Whether it is an autovacuum that PostgreSQL does not cancel."""
        return self.autovacuum and self.query.endswith(_TO_PREVENT_WRAPAROUND)

    def __str__(self) -> str:
        shown = excerpt(self.query, _QUERY_LENGTH)
        if self.autovacuum:
            return f"pid {self.pid} (a worker of autovacuum, for {self.age.total_seconds():.1f} s): {shown}"
        login = f"user {self.user}, {self.application}" if self.application else f"user {self.user}"
        return f"pid {self.pid} ({login}, {self.state} for {self.age.total_seconds():.1f} s): {shown}"


class BlockingSessionWatch:
    """Context manager with a thread that records the sessions that block a backend.

    `seen` holds the last blocking sessions of the current statement. One thread serves the whole deployment, because
    starting one for each statement would cost more than a small statement. The thread opens its connection only when a
    statement runs longer than half a lock timeout.
    """

    def __init__(self, conninfo: str, *, delay_s: float) -> None:
        self.seen: tuple[BlockingSession, ...] = ()
        self._conninfo = conninfo
        self._delay_s = delay_s
        self._running: _Running | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def begin(self, backend_pid: int, on_blocked: Callable[[tuple[BlockingSession, ...]], None]) -> None:
        """Watch a backend's next statement; the thread calls `on_blocked` with the first blocking sessions."""
        self.seen = ()
        self._running = _Running(backend_pid, on_blocked, time.monotonic())

    def end(self) -> None:
        """Stop watching: the statement has ended."""
        self._running = None

    def _watch(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                connection: psycopg.Connection | None = None
                while not self._stop.wait(_INTERVAL_S):
                    running = self._running
                    if running and time.monotonic() - running.since > self._delay_s:
                        connection = connection or stack.enter_context(connect(self._conninfo, purpose="blockers"))
                        self._record(connection, running)
        except (DatabaseError, psycopg.Error):
            return  # Without the names the lock timeout is still reported.

    def _record(self, connection: psycopg.Connection, running: _Running) -> None:
        found = _blocking_sessions(connection, running.backend_pid)
        if self._running is not running:
            return  # the statement ended meanwhile
        if found and not self.seen:
            running.on_blocked(found)
        self.seen = found or self.seen


class _Running(NamedTuple):
    """The watched statement; `since` is a time of the monotonic clock."""

    backend_pid: int
    on_blocked: Callable[[tuple[BlockingSession, ...]], None]
    since: float


def lock_holders(connection: psycopg.Connection) -> tuple[BlockingSession, ...]:
    """Return the sessions that a statement of this session may have waited for when its lock timeout ended it."""
    return _sessions(connection.execute(_HOLDING).fetchall())


def _blocking_sessions(connection: psycopg.Connection, backend_pid: int) -> tuple[BlockingSession, ...]:
    return _sessions(connection.execute(_BLOCKING, [backend_pid]).fetchall())


def _sessions(rows: Iterable[tuple[Any, ...]]) -> tuple[BlockingSession, ...]:
    return tuple(
        BlockingSession(
            pid=pid,
            user=user or "?",
            application=application or "",
            state=state or "?",
            query=query or "?",
            age=age,
            autovacuum=autovacuum,
        )
        for pid, user, application, state, query, age, autovacuum in rows
    )
