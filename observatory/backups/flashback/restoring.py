"""Inserts missing rows: staged beside the table first, then in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg
from psycopg import errors as pg
from psycopg import sql

from observatory.backups.flashback.aggregates import refresh_recorded, refresh_with_rows
from observatory.backups.flashback.comparison import Found, Sessions
from observatory.backups.flashback.difference import Restored
from observatory.backups.flashback.errors import FlashbackError, NotRestoredError
from observatory.backups.flashback.rows import Rows
from observatory.backups.space import RESERVE_BYTES
from observatory.database.error_translation import error_summary

LOCK_TIMEOUT = "10s"  # of the insert, so that it does not queue behind a migration with all writes behind it
COPIES = 3  # of a staged row: the staged one, the restored one and its WAL

_STAGED = sql.Identifier("pg_temp", "flashback_missing")
_CREATE = "CREATE TEMPORARY TABLE flashback_missing AS SELECT {columns} FROM {table} WITH NO DATA"
# What another row has taken the place of stays as it is.
_INSERT = """
    INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {staged} ON CONFLICT DO NOTHING
"""
# Within Python's calendar. No aggregate reaches its ends.
_PERIOD = "SELECT greatest(min({0}), '0001-01-02'), least(max({0}), '9999-12-30') FROM {1}"
_SEQUENCE = "SELECT s.seqincrement, s.seqmax, d.last_value FROM pg_sequence s, {} d WHERE s.seqrelid = %s::regclass"


@dataclass
class Restorer:
    """The restore of the missing rows of one table; `writer` is a session of its own of the live database."""

    rows: Rows
    sessions: Sessions
    writer: psycopg.Connection
    free_bytes: Callable[[], int]
    staged: int = 0
    _written: int = field(default=0, init=False)

    def stage(self, found: Found) -> None:
        """Copy missing rows beside the table.

        Raises:
            FlashbackError: they would fill the disk.
        """
        table = self.rows.table
        columns = sql.SQL(", ").join(map(sql.Identifier, table.columns))
        if not self.staged:
            self.writer.execute(sql.SQL(_CREATE).format(columns=columns, table=table.identifier))
        self._check_room()
        query = sql.SQL("COPY ({}) TO STDOUT").format(self.rows.select(found.within, found.identities))
        into = sql.SQL("COPY {} FROM STDIN").format(_STAGED)
        with self.sessions.clone_lookup.cursor().copy(query) as rows, self.writer.cursor() as cursor:
            with cursor.copy(into) as copy:
                for block in rows:
                    self._written += len(block)
                    copy.write(block)
            self.staged += cursor.rowcount

    def insert(self) -> Restored:
        """Insert the staged rows in one transaction, and refresh the aggregates of their time.

        Raises:
            NotRestoredError: PostgreSQL refused a row, and none was inserted.
            NotRefreshedError: the rows are inserted, an aggregate is not refreshed.
        """
        if not self.staged:
            return Restored(inserted=0, kept=0, refreshed=tuple(refresh_recorded(self.writer)))
        self._advance_sequences()
        try:
            inserted, refreshed = self._insert()
        except psycopg.Error as error:
            raise _not_restored(error, str(self.rows.table)) from error
        refreshed += refresh_recorded(self.writer)
        return Restored(inserted=inserted, kept=self.staged - inserted, refreshed=tuple(refreshed))

    def _insert(self) -> tuple[int, list[str]]:
        table = self.rows.table
        columns = sql.SQL(", ").join(map(sql.Identifier, table.columns))
        with self.writer.transaction():
            self.writer.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT)))
            insert = sql.SQL(_INSERT).format(table=table.identifier, columns=columns, staged=_STAGED)
            inserted = self.writer.execute(insert).rowcount
            self.writer.execute("SET CONSTRAINTS ALL IMMEDIATE")
            refreshed: list[str] = []
            if table.time and inserted and table.is_time:
                period = sql.SQL(_PERIOD).format(sql.Identifier(table.time), _STAGED)
                ((first, last),) = self.writer.execute(period).fetchall()
                refreshed = refresh_with_rows(self.writer, table, (first, last))
        return inserted, refreshed

    def _check_room(self) -> None:
        free = self.free_bytes()
        if free < RESERVE_BYTES + self._written * (COPIES - 1):
            raise FlashbackError(
                f"the missing rows of {self.rows.table} do not fit: {self._written // 2**20} MiB are staged, and "
                f"{free // 2**20} MiB of the database's disk are free. Nothing was restored",
                remedy="Free space, or restore a part of them with --where.",
            )

    def _advance_sequences(self) -> None:
        """Move sequences behind the rows to restore, where a restart has set them back: later rows get other numbers.

        A sequence that moves without a restored row does no harm, so this is a transaction of its own.
        """
        for column, sequence in self.rows.table.sequences.items():
            highest = sql.SQL("SELECT max({}) FROM {}").format(sql.Identifier(column), _STAGED)
            row = self.writer.execute(highest).fetchone()
            if row and row[0] is not None:
                self._advance(sequence, int(row[0]))

    def _advance(self, sequence: str, highest: int) -> None:
        name, read = sql.SQL(sequence), sql.SQL(_SEQUENCE)
        if not _is_behind(self.writer.execute(read.format(name), [sequence]).fetchone(), highest):
            return
        with self.writer.transaction():
            self.writer.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT)))
            # It locks the sequence, which setval() does not: no session can take a number between reading and restart.
            self.writer.execute(sql.SQL("ALTER SEQUENCE {} INCREMENT BY 1").format(name))
            if _is_behind(self.writer.execute(read.format(name), [sequence]).fetchone(), highest):
                self.writer.execute(sql.SQL("ALTER SEQUENCE {} RESTART WITH {}").format(name, sql.Literal(highest + 1)))


def _is_behind(row: tuple[int, int, int] | None, highest: int) -> bool:
    """Return whether a sequence by 1 will return a number that is in use."""
    return row is not None and row[0] == 1 and row[2] <= highest < row[1]


def _not_restored(error: psycopg.Error, table: str) -> NotRestoredError:
    reason = f"no row of {table} was restored: {error_summary(error)}"
    if isinstance(error, pg.ForeignKeyViolation):
        remedy = "Restore the rows of the table that it refers to first, or leave these rows out with --where."
    elif isinstance(error, pg.IntegrityError):
        remedy = "Leave these rows out with --where, or copy them with SQL in a form that the table accepts."
    elif isinstance(error, (pg.LockNotAvailable, pg.DeadlockDetected, pg.SerializationFailure)):
        remedy = "Another session holds a lock that this needs. Run again."
    else:
        remedy = "Correct the cause and run again."
    return NotRestoredError(reason, remedy=remedy)
