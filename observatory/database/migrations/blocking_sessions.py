"""Who stands in the way of a statement that waits for a lock.

PostgreSQL's lock timeout does not say who held the lock, and afterwards it is too late to ask; so a second
connection asks while the first one waits.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import NamedTuple, Self

import psycopg

from observatory.database.connection import connect
from observatory.database.errors import DatabaseError

_INTERVAL_S = 0.05
_QUERY_LENGTH = 120

_BLOCKERS = """
    SELECT a.pid, a.usename, a.application_name, a.state, a.query,
           clock_timestamp() - coalesce(a.xact_start, a.query_start, a.backend_start)
    FROM unnest(pg_blocking_pids(%s)) AS blocking(pid) JOIN pg_stat_activity a USING (pid) ORDER BY 6 DESC
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocker:
    """A session that held a lock which a migration waited for; `age` is that of its transaction."""

    pid: int
    user: str
    application: str
    state: str
    query: str
    age: timedelta

    def __str__(self) -> str:
        query = " ".join(self.query.split())
        shown = query if len(query) <= _QUERY_LENGTH else f"{query[:_QUERY_LENGTH]}…"
        who = f"user {self.user}, {self.application}" if self.application else f"user {self.user}"
        return f"pid {self.pid} ({who}, {self.state} for {self.age.total_seconds():.1f} s): {shown}"


class BlockerWatch:
    """Context manager with a thread that notes who blocks a backend; `seen` holds the last blockers of a statement.

    One thread for a whole deployment, which only looks at the clock: starting one for each statement would cost more
    than a small statement. Its connection opens when a statement takes longer than half a lock timeout, so that work
    which does not wait pays next to nothing.
    """

    def __init__(self, conninfo: str, *, delay_s: float) -> None:
        self.seen: tuple[Blocker, ...] = ()
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

    def begin(self, backend_pid: int, on_seen: Callable[[tuple[Blocker, ...]], None]) -> None:
        """Watch a backend's next statement; `on_seen` gets the first blockers, in the thread."""
        self.seen = ()
        self._running = _Running(backend_pid, on_seen, time.monotonic())

    def end(self) -> None:
        """The statement is over."""
        self._running = None

    def _watch(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                connection: psycopg.Connection | None = None
                while not self._stop.wait(_INTERVAL_S):
                    running = self._running
                    if running and time.monotonic() - running.since > self._delay_s:
                        connection = connection or stack.enter_context(connect(self._conninfo, purpose="blockers"))
                        self._look(connection, running)
        except (DatabaseError, psycopg.Error):
            return  # The names are a help in an error message; without them the error itself still comes.

    def _look(self, connection: psycopg.Connection, running: _Running) -> None:
        found = _blockers(connection, running.backend_pid)
        if self._running is not running:
            return  # another statement by now
        if found and not self.seen:
            running.on_seen(found)
        self.seen = found or self.seen


class _Running(NamedTuple):
    """A statement that is watched; `since` by the monotonic clock."""

    backend_pid: int
    on_seen: Callable[[tuple[Blocker, ...]], None]
    since: float


def _blockers(connection: psycopg.Connection, backend_pid: int) -> tuple[Blocker, ...]:
    rows = connection.execute(_BLOCKERS, [backend_pid]).fetchall()
    return tuple(
        Blocker(
            pid=pid, user=user or "?", application=application or "", state=state or "?", query=query or "?", age=age
        )
        for pid, user, application, state, query, age in rows
    )
