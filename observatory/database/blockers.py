"""Who stands in the way of a statement that waits for a lock.

PostgreSQL's lock timeout does not say who held the lock, and afterwards it is too late to ask; so a second
connection asks while the first one waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

import psycopg

from observatory.database.connection import connect
from observatory.database.errors import DatabaseError

_INTERVAL_S = 0.1
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
    """Context manager that notes who blocks a backend; `seen` holds the last blockers, `on_seen` gets the first ones.

    The watching connection opens only when the block takes longer than half a lock timeout, so that work which does
    not wait pays next to nothing.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        backend_pid: int,
        delay_s: float,
        on_seen: Callable[[tuple[Blocker, ...]], None] = lambda _: None,
    ) -> None:
        self.seen: tuple[Blocker, ...] = ()
        self.backend_pid = backend_pid
        self._conninfo = conninfo
        self._on_seen = on_seen
        self._stop = threading.Event()
        self._timer = threading.Timer(delay_s, self._watch)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stop.set()
        self._timer.cancel()
        self._timer.join()

    def _watch(self) -> None:
        try:
            with connect(self._conninfo, purpose="blockers") as connection:
                while not self._stop.wait(_INTERVAL_S):
                    self._look(connection)
        except (DatabaseError, psycopg.Error):
            return  # The names are a help in an error message; without them the error itself still comes.

    def _look(self, connection: psycopg.Connection) -> None:
        found = _blockers(connection, self.backend_pid)
        if found and not self.seen:
            self._on_seen(found)
        self.seen = found or self.seen


def _blockers(connection: psycopg.Connection, backend_pid: int) -> tuple[Blocker, ...]:
    rows = connection.execute(_BLOCKERS, [backend_pid]).fetchall()
    return tuple(
        Blocker(
            pid=pid, user=user or "?", application=application or "", state=state or "?", query=query or "?", age=age
        )
        for pid, user, application, state, query, age in rows
    )
