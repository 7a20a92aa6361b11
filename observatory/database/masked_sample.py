"""Copies a masked sample of one database to another: whole traces of production for staging, without personal data.

A hash of the trace's id alone decides whether a trace is in the sample. So every run chooses the same traces, with all
their spans and logs, and a smaller fraction is a subset of a larger one. The source's own SELECT applies the masks
(`observatory.database.sample_masks`), so that no personal data leaves it.

Owns the choice of traces and the copying. The caller chooses the databases and stores the salt.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
from psycopg import sql

from observatory.database.connection import connect, describe
from observatory.database.error_translation import translate_errors
from observatory.database.errors import SampleError
from observatory.database.sample_masks import MASKS

SETTLED = timedelta(days=1)  # clients may send this late; an older window is not copied twice
MIN_SALT_LENGTH = 16

_SESSION: Mapping[str, str] = {"search_path": "public", "statement_timeout": "0", "timezone": "UTC"}
_SOURCE: Mapping[str, str] = {**_SESSION, "default_transaction_read_only": "on"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """The result of a run.

    Attributes:
        spans: new rows of llm_traces in the target.
        logs: written rows of llm_logs.
        windows: copied days.
        skipped: days that an earlier run copied and that ended more than `SETTLED` ago.
    """

    spans: int
    logs: int
    windows: int
    skipped: int


OnWindow = Callable[[datetime, int], None]  # the day, and its number of new spans


# 32 bits of the hash: uniform for any form of ids, and exact to a billionth.
_CHOSEN = "('x' || left(md5(trace_id), 8))::bit(32)::bigint < {limit}"
_IN_WINDOW = "ts >= {start} AND ts < {end} AND trace_id IS NOT NULL AND " + _CHOSEN
_HASH_VALUES = 2**32

# The days that have rows, as chunks of either table.
_PERIODS = """
    SELECT DISTINCT range_start, range_end FROM timescaledb_information.chunks
    WHERE hypertable_schema = 'public' AND hypertable_name IN ('llm_traces', 'llm_logs') ORDER BY range_start, range_end
"""
_LOCKED = """
    SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 0 AND objid = %s AND objsubid = 1 AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_HAS_OWN_TRACES = "SELECT to_regclass('observatory.sample_windows') IS NULL AND EXISTS (SELECT FROM llm_traces)"
_WINDOWS = """
    CREATE TABLE IF NOT EXISTS observatory.sample_windows (
        sample    text NOT NULL,
        starts_at timestamptz NOT NULL,
        copied_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (sample, starts_at)
    )
"""


def copy_sample(
    source: str,
    target: str,
    *,
    fraction: float,
    salt: str,
    samples_only: bool = False,
    on_window: OnWindow | None = None,
) -> Sample:
    """Copy a masked sample of one database to another. A later run continues and repeats nothing.

    Args:
        source: a direct connection (no transaction pooler) as a role that may read; a standby is sufficient.
        target: a direct connection as the role that owns the schema, with the same migrations.
        fraction: of the traces, above 0 and at most 1.
        salt: secret of the pseudonyms; pass the same one each time, so that a user keeps the pseudonym.
        samples_only: refuse a target with traces of its own, which may be a database in use.
        on_window: called after each copied day.

    Raises:
        SampleError: the fraction or the salt is unusable, source and target are one database, or the target is refused.
        StatementFailedError: PostgreSQL rejected a statement; the copied days stay.
        UnreachableError: the connection failed or broke; the copied days stay.
    """
    _check(fraction, salt)
    with (
        connect(source, purpose="sample", settings=_SOURCE) as reader,
        connect(target, purpose="sample", settings=_SESSION) as writer,
        translate_errors(f"sample of {describe(source)} for {describe(target)}"),
    ):
        _refuse_one_database(reader, writer)
        if samples_only and writer.execute(_HAS_OWN_TRACES).fetchone() == (True,):
            raise SampleError(
                f"{describe(target)} has traces that no sample copied, so it may be in use. Name its stack instead, or "
                "a database without traces"
            )
        reader.isolation_level = (
            psycopg.IsolationLevel.REPEATABLE_READ
        )  # a consistent view of a day's traces, logs and users
        reader.execute("SELECT set_config('observatory.salt', %s, false)", [salt])
        writer.execute("SET client_min_messages = warning")
        writer.execute(_WINDOWS)
        name = f"{describe(source)}, {fraction:g}, {hashlib.sha256(salt.encode()).hexdigest()[:16]}"
        copier = _Copier(reader=reader, writer=writer, limit=round(fraction * _HASH_VALUES), sample=name)
        copier.copy_tables()
        return copier.copy_windows(on_window)


def _check(fraction: float, salt: str) -> None:
    if not 0 < fraction <= 1:
        raise SampleError(f"The fraction {fraction:g} is out of range. Choose one above 0 and at most 1, such as 0.15")
    if len(salt) < MIN_SALT_LENGTH:
        raise SampleError(
            f"The salt has {len(salt)} characters, too few to keep pseudonyms secret. Use at least {MIN_SALT_LENGTH}"
        )


def _refuse_one_database(reader: psycopg.Connection, writer: psycopg.Connection) -> None:
    """Refuse two sessions of one database, under any name: a lock that the writer takes is there for both.

    The reader may not be allowed to take it.
    """
    key = [random.getrandbits(31)]
    writer.execute("SELECT pg_advisory_lock(%s)", key)
    same = reader.execute(_LOCKED, key).fetchone() is not None
    writer.execute("SELECT pg_advisory_unlock(%s)", key)
    if same:
        raise SampleError("Source and target are the same database. Name another target")


@dataclass(frozen=True, kw_only=True)
class _Copier:
    """Copies between two sessions; a trace with a hash below `limit` is in the sample."""

    reader: psycopg.Connection
    writer: psycopg.Connection
    limit: int
    sample: str

    def copy_tables(self) -> None:
        """Copy prices, and projects with their owners."""
        owners = sql.SQL("id IN (SELECT owner_id FROM projects)")
        for table, condition in (("model_pricing", sql.SQL("true")), ("users", owners), ("projects", sql.SQL("true"))):
            with self.writer.transaction():
                self._copy(table, condition)

    def copy_windows(self, on_window: OnWindow | None) -> Sample:
        """Copy the remaining days, each in one transaction of the target."""
        spans = logs = windows = skipped = 0
        done = self._copied_days()
        for start, end in self.reader.execute(_PERIODS).fetchall():
            if start in done:
                skipped += 1
                continue
            new, lines = self._copy_window(start, end)
            spans, logs, windows = spans + new, logs + lines, windows + 1
            if on_window:
                on_window(start, new)
        return Sample(spans=spans, logs=logs, windows=windows, skipped=skipped)

    def _copied_days(self) -> set[datetime]:
        query = "SELECT starts_at FROM observatory.sample_windows WHERE sample = %s"
        return {row[0] for row in self.writer.execute(query, [self.sample]).fetchall()}

    def _copy_window(self, start: datetime, end: datetime) -> tuple[int, int]:
        values = {"start": sql.Literal(start), "end": sql.Literal(end), "limit": sql.Literal(self.limit)}
        inside = sql.SQL(_IN_WINDOW).format(**values)
        users = sql.SQL("id IN (SELECT user_id FROM llm_traces WHERE {})").format(inside)
        with self.reader.transaction(), self.writer.transaction():
            self._copy("users", users)
            spans = self._copy("llm_traces", inside)
            # Log lines have no key that identifies a repeated one, so those of the day are replaced.
            self.writer.execute(sql.SQL("DELETE FROM llm_logs WHERE {}").format(inside))
            logs = self._copy("llm_logs", inside)
            if end + SETTLED < datetime.now(UTC):
                record = "INSERT INTO observatory.sample_windows (sample, starts_at) VALUES (%s, %s)"
                self.writer.execute(record, [self.sample, start])
        return spans, logs

    def _copy(self, table: str, condition: sql.Composable) -> int:
        """Stream the chosen rows, masked, through a temporary table; return the number of new rows."""
        masks = MASKS[table]
        columns = sql.SQL(", ").join(map(sql.Identifier, masks))
        name, temporary = sql.Identifier(table), sql.Identifier(f"sample_{table}")
        fields = sql.SQL(", ").join(sql.SQL(mask) for mask in masks.values())
        select = sql.SQL("COPY (SELECT {} FROM {} WHERE {}) TO STDOUT").format(fields, name, condition)
        create = "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA"
        with self.writer.transaction():
            self.writer.execute(sql.SQL(create).format(temporary, columns, name))
            with (
                self.reader.cursor().copy(select) as rows,
                self.writer.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(temporary)) as copy,
            ):
                for block in rows:
                    copy.write(block)
            insert = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT DO NOTHING")
            new = self.writer.execute(insert.format(name, columns, columns, temporary)).rowcount
            self.writer.execute(sql.SQL("DROP TABLE {}").format(temporary))
        return new
