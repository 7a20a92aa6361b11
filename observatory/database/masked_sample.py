"""Copies a masked sample of one database to another: whole traces of production for staging, without personal data.

A keyed hash of the trace's id alone decides whether a trace is in the sample. So every run chooses the same traces,
with all their spans and logs, and a smaller fraction is a subset of a larger one. The source's own SELECT applies the
masks (`observatory.database.sample_masks`), so that no personal data leaves it.

Owns the choice of traces and the copying. The caller chooses the databases and stores the key.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
from psycopg import sql

from observatory.database.advisory_locks import SAMPLE_LOCK, session_lock
from observatory.database.connection import connect, describe
from observatory.database.error_translation import translate_errors
from observatory.database.errors import SampleError
from observatory.database.sample_columns import CopiedTable, Copies, Masking, Reference, plan_copies
from observatory.database.sample_expressions import fingerprint, fraction, key_settings, keyed, literal, row_secrets
from observatory.database.sample_masks import FORMAT, column
from observatory.database.sample_target import Target

SETTLED = timedelta(days=1)  # clients may send this late; an older window is not copied twice
MIN_KEY_LENGTH = 16

_SESSION: Mapping[str, str] = {"search_path": "public", "statement_timeout": "0", "timezone": "UTC"}
_SOURCE: Mapping[str, str] = {**_SESSION, "default_transaction_read_only": "on", "jit": "off"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """The result of a run.

    Attributes:
        spans: new or changed rows of llm_traces in the target.
        logs: new rows of llm_logs.
        windows: copied days.
        skipped: days that an earlier run copied and that ended more than `SETTLED` ago.
    """

    spans: int
    logs: int
    windows: int
    skipped: int


OnWindow = Callable[[datetime, int], None]  # the day, and its number of new spans

# The days that have rows, as chunks of either table.
_PERIODS = """
    SELECT DISTINCT range_start, range_end FROM timescaledb_information.chunks
    WHERE hypertable_schema = 'public' AND hypertable_name IN ('llm_traces', 'llm_logs') ORDER BY range_start, range_end
"""
_LOCKED = """
    SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 0 AND objid = %s AND objsubid = 1 AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def copy_sample(
    source: str,
    target: str,
    *,
    fraction: float,
    key: str,
    masking: Masking | None = None,
    save_key: Callable[[], None] | None = None,
    keep_own_data: bool = False,
    on_window: OnWindow | None = None,
) -> Sample:
    """Copy a masked sample of one database to another. A later run continues and repeats nothing.

    Args:
        source: a direct connection (no transaction pooler) as a role that may read; a standby is sufficient.
        target: a direct connection as the role that owns the schema, with the same migrations.
        fraction: of the traces, above 0 and at most 1.
        key: secret of the masks; pass the same one each time, so that a user keeps the pseudonym.
        masking: known values, and masks of own columns.
        save_key: stores a new key. If given, the target's earlier sample is removed first; without it, a target with a
            sample of another key is refused.
        keep_own_data: copy also beside data that no sample copied; otherwise such a target is refused.
        on_window: called after each copied day.

    Raises:
        SampleError: the fraction or the key is unusable, source and target are one database, the target is refused, or
            a column has no mask; nothing was copied.
        LockHeldError: another sample is being copied to the target.
        StatementFailedError: PostgreSQL rejected a statement; the copied days stay.
        UnreachableError: the connection failed or broke; the copied days stay.
    """
    _check(fraction, key)
    chosen = masking or Masking()
    with (
        connect(source, purpose="sample", settings=_SOURCE) as reader,
        connect(target, purpose="sample", settings=_SESSION) as writer,
        translate_errors(f"sample of {describe(source)} for {describe(target)}"),
    ):
        _refuse_one_database(reader, writer)
        with session_lock(writer, SAMPLE_LOCK, wait_s=0):
            writer.execute("SET client_min_messages = warning")
            copies = plan_copies(reader, writer, chosen)
            key_id, masks = fingerprint(key, "#key", "")[:16], _digest(key, chosen)
            into = Target(writer=writer, name=describe(target), key_id=key_id, masks=masks)
            into.prepare(save_key=save_key, keep_own_data=keep_own_data)
            _prepare_source(reader, key)
            copier = _Copier(
                reader=reader,
                writer=writer,
                copies=copies,
                limit=fraction,
                sample=fingerprint(key, "#sample", f"{describe(source)} {fraction:g}")[:16],
                retention=into.retention(),
            )
            copier.copy_tables()
            sample = copier.copy_windows(on_window)
            copier.copy_own_tables()
            return sample


def _prepare_source(reader: psycopg.Connection, key: str) -> None:
    reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ  # a consistent view of a day's rows and users
    for name, value in key_settings(key).items():
        reader.execute("SELECT set_config(%s, %s, false)", [name, value])


def _check(fraction: float, key: str) -> None:
    if not 0 < fraction <= 1:
        raise SampleError(f"The fraction {fraction:g} is out of range. Choose one above 0 and at most 1, such as 0.15")
    if len(key) < MIN_KEY_LENGTH:
        raise SampleError(
            f"The key has {len(key)} characters, too few to keep pseudonyms secret. Use at least {MIN_KEY_LENGTH}"
        )


def _digest(key: str, masking: Masking) -> str:
    """Return a digest of the masks of traces and logs, which rows that are copied later must share."""
    tables = ("llm_traces.", "llm_logs.", "public.llm_traces.", "public.llm_logs.")
    own = {name: kind for name, kind in masking.masks.items() if name.startswith(tables)}
    known = {domain: sorted(values) for domain, values in masking.known_values.items()}
    return fingerprint(key, "#masks", json.dumps([FORMAT, own, known], sort_keys=True))[:16]


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
    """Copies between two sessions; a trace whose keyed hash, from 0 to 1, is below `limit` is in the sample."""

    reader: psycopg.Connection
    writer: psycopg.Connection
    copies: Copies
    limit: float
    sample: str
    retention: Mapping[str, timedelta]

    def copy_tables(self) -> None:
        """Copy prices, and projects with their owners."""
        owners = f"{column('id')} IN (SELECT owner_id FROM projects)"  # noqa: S608 - constants
        for name, condition in (("model_pricing", "true"), ("users", owners), ("projects", "true")):
            with self.writer.transaction():
                self._copy(self.copies.product[name], condition)

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

    def copy_own_tables(self) -> None:
        """Replace the own tables that have masks, all in one transaction: their rows have no key that is known here."""
        with self.reader.transaction(), self.writer.transaction():
            for each in reversed(self.copies.own):
                self.writer.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(each.schema, each.name)))
            for each in self.copies.own:
                self._copy(each, self._chosen(column(each.trace)) if each.trace else "true")

    def _copied_days(self) -> set[datetime]:
        query = "SELECT starts_at FROM observatory.sample_days WHERE sample = %s"
        return {row[0] for row in self.writer.execute(query, [self.sample]).fetchall()}

    def _copy_window(self, start: datetime, end: datetime) -> tuple[int, int]:
        period = f"BETWEEN {literal(start.isoformat())} AND {literal((end - timedelta(microseconds=1)).isoformat())}"
        users = f"SELECT user_id FROM llm_traces AS spans WHERE ts {period} AND {self._chosen('spans.trace_id')}"  # noqa: S608
        inside = f"{column('ts')} {period} AND {self._chosen(column('trace_id'))}"
        with self.reader.transaction(), self.writer.transaction():
            self._copy(self.copies.product["users"], f"{column('id')} IN ({users})")
            spans = self._copy(self.copies.product["llm_traces"], inside)
            logs = self._copy(self.copies.product["llm_logs"], inside)
            if end + SETTLED < datetime.now(UTC):
                record = "INSERT INTO observatory.sample_days (sample, starts_at) VALUES (%s, %s)"
                self.writer.execute(record, [self.sample, start])
        return spans, logs

    def _chosen(self, trace: str) -> str:
        """Return the condition that a trace is in the sample; without the key, the traces of a sample are not known."""
        return f"({trace} IS NOT NULL AND {fraction(keyed(literal('#choice'), f'{trace}::text'))} < {self.limit!r})"

    def _copy(self, copied: CopiedTable, condition: str) -> int:
        """Stream the chosen rows, masked, through a temporary table; return the number of new and changed rows."""
        table = copied.table
        columns = sql.SQL(", ").join(map(sql.Identifier, table.masks))
        name, temporary = sql.Identifier(copied.schema, copied.name), sql.Identifier("pg_temp", "masked_rows")
        fields = ", ".join(mask(column(each)) for each, mask in table.masks.items())
        if copied.name in self.retention and copied.schema == "public":
            seconds = self.retention[copied.name].total_seconds()
            condition += f" AND {table.masks['ts'](column('ts'))} >= now() - INTERVAL '1 second' * {seconds!r}"
        select = sql.SQL("COPY (SELECT {} FROM {} AS original {} WHERE {}) TO STDOUT").format(
            sql.SQL(fields), name, sql.SQL(row_secrets(table.anchor, table.price)), sql.SQL(condition)
        )
        create = "CREATE TEMPORARY TABLE masked_rows ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA"
        with self.writer.transaction():
            self.writer.execute(sql.SQL(create).format(columns, name))
            with (
                self.reader.cursor().copy(select) as rows,
                self.writer.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(temporary)) as copy,
            ):
                for block in rows:
                    copy.write(block)
            new = self.writer.execute(_merge(copied, name, columns, temporary)).rowcount
            self.writer.execute(sql.SQL("DROP TABLE {}").format(temporary))
        return new


def _merge(
    copied: CopiedTable, name: sql.Identifier, columns: sql.Composable, temporary: sql.Identifier
) -> sql.Composed:
    """Return the statement that adds the masked rows, in the order of their pseudonyms: not in that of the source."""
    into = sql.SQL("INSERT INTO {} AS stored ({}) ").format(name, columns)
    source = sql.SQL("{} FROM {} AS masked ").format(columns, temporary)
    if copied.table.key:
        key = sql.SQL(", ").join(map(sql.Identifier, copied.table.key))
        others = [sql.Identifier(each) for each in copied.table.masks if each not in copied.table.key]
        return into + sql.SQL(
            "SELECT DISTINCT ON ({key}) {source} ORDER BY {key} ON CONFLICT ({key}) DO UPDATE SET {values} "
            "WHERE ({stored}) IS DISTINCT FROM ({masked})"
        ).format(
            key=key,
            source=source,
            values=sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(each) for each in others),
            stored=sql.SQL(", ").join(sql.SQL("stored.{}").format(each) for each in others),
            masked=sql.SQL(", ").join(sql.SQL("excluded.{}").format(each) for each in others),
        )
    insert = into + sql.SQL("SELECT ") + source
    if copied.name == "llm_logs" and copied.schema == "public":
        # Log lines have no key: those that the target has not are added, as often as the source has them.
        return insert + sql.SQL(
            "EXCEPT ALL SELECT {} FROM {} WHERE trace_id IN (SELECT trace_id FROM {}) ORDER BY trace_id"
        ).format(columns, name, temporary)
    conditions = [_has_parent(each) for each in copied.references]
    return insert + sql.SQL("WHERE {}").format(sql.SQL(" AND ").join([sql.SQL("true"), *conditions]))


def _has_parent(reference: Reference) -> sql.Composed:
    """Return the condition that a row's parent was copied, or that it has none."""
    pairs = list(zip(reference.columns, reference.parent_columns, strict=True))
    schema, table = reference.parent.split(".", 1)
    return sql.SQL("({} OR EXISTS (SELECT FROM {} AS parent WHERE {}))").format(
        sql.SQL(" OR ").join(sql.SQL("masked.{} IS NULL").format(sql.Identifier(child)) for child, _ in pairs),
        sql.Identifier(schema, table),
        sql.SQL(" AND ").join(
            sql.SQL("parent.{} = masked.{}").format(sql.Identifier(parent), sql.Identifier(child))
            for child, parent in pairs
        ),
    )
