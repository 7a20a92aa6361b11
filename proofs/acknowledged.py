"""A writer of rows into a database that is restored under it: which rows must be there is known at any time.

A row counts from the moment that its commit was acknowledged. A mark is written after the time to which the database is
restored: each row was acknowledged by a database that has the mark, which is the one of now, or by one that lacks it,
which is the restored one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from observatory.database import connect
from observatory.errors import ObservatoryError

PREFIX = "proof-"
PAUSE_S, RETRY_S = 0.02, 0.2
_INSERT = "INSERT INTO users (id) VALUES (%s) RETURNING EXISTS (SELECT FROM users WHERE id = %s)"


@dataclass
class Acknowledged:
    """Writes rows as a context manager, and compares the database with what it has acknowledged.

    Attributes:
        conninfo: of the database.
        base: rows of the time that the database may be restored to.
        mark: the row after that time.
        rows: that were acknowledged since, by whether the database had the mark.
        unknown: whose commit was neither acknowledged nor refused.
    """

    conninfo: str
    base: set[str] = field(default_factory=set)
    mark: str = ""
    rows: dict[bool, set[str]] = field(default_factory=lambda: {True: set(), False: set()})
    unknown: set[str] = field(default_factory=set)
    written: int = 0
    _numbers: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Acknowledged:
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def moment(self, meanwhile: Callable[[], object] = lambda: None) -> str:
        """Return a time of now, after which the mark is written; `meanwhile` runs before that, with the same rows."""
        with self._quiet() as connection:
            self.base, self.rows, self.unknown = ids(connection), {True: set(), False: set()}, set()
            [(time,)] = connection.execute("SELECT clock_timestamp() FROM pg_sleep(0.01)").fetchall()
            meanwhile()
            self.mark = self._next("mark")
            connection.execute("SELECT pg_sleep(0.01)")
            connection.execute("INSERT INTO users (id) VALUES (%s)", [self.mark])
        return str(time.isoformat())

    def is_restored(self) -> bool:
        """Return whether the database is that of the moment."""
        with self._quiet() as connection:
            return self.mark not in ids(connection)

    def wrong(self, *, restored: bool | None = None) -> Iterator[str]:
        """Yield how the database differs from what it has acknowledged.

        Args:
            restored: whether it must be that of the moment; None: it may be either.
        """
        with self._quiet() as connection:
            found = ids(connection)
            has_mark = self.mark in found
            wanted = self.base | self.rows[has_mark] | ({self.mark} if has_mark else set())
            unknown = set(self.unknown)
        if restored is not None and restored == has_mark:
            yield f"the database is {'not ' if restored else ''}that of the moment"
        if lost := wanted - found:
            yield f"{len(lost)} acknowledged rows are lost, such as {min(lost)}"
        if extra := found - wanted - unknown:
            yield f"{len(extra)} rows are there that it never had, such as {min(extra)}"

    @contextmanager
    def _quiet(self) -> Iterator[psycopg.Connection]:
        """Yield a connection while nothing is written."""
        with self._lock, connect(self.conninfo, purpose="proof") as connection:
            yield connection

    def _next(self, kind: str = "row") -> str:
        self._numbers += 1
        return f"{PREFIX}{kind}-{self._numbers}"

    def _write(self) -> None:
        while not self._done.is_set():
            try:
                with connect(self.conninfo, purpose="proof") as connection:
                    self._write_to(connection)
            except (psycopg.Error, ObservatoryError):
                self._done.wait(RETRY_S)

    def _write_to(self, connection: psycopg.Connection) -> None:
        while not self._done.wait(PAUSE_S):
            with self._lock:
                row = self._next()
                self.unknown.add(row)
                [(has_mark,)] = connection.execute(_INSERT, [row, self.mark]).fetchall()
                self.unknown.discard(row)
                self.rows[has_mark].add(row)
                self.written += 1


def ids(connection: psycopg.Connection) -> set[str]:
    """Return the rows of a writer that a database has."""
    found = connection.execute("SELECT id FROM users WHERE starts_with(id, %s)", [PREFIX]).fetchall()
    return {name for (name,) in found}
