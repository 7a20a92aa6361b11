"""A masked sample of one database for another: whole traces of production for staging, with nothing personal in them.

A trace is in the sample by a hash of its id alone: the same ones each time, with all their spans and logs, and those
of a smaller fraction are among those of a larger one. What people wrote is replaced, who they are becomes a salted
hash, and both happen in the source's own SELECT, before anything leaves it.

Owns the choice, the masks and the copying. Which databases these are, and where the salt is kept, is the caller's.
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

SETTLED = timedelta(days=1)  # how late clients send: a window that is older is not copied twice
MIN_SALT_LENGTH = 16

_SESSION: Mapping[str, str] = {"search_path": "public", "statement_timeout": "0", "timezone": "UTC"}
_SOURCE: Mapping[str, str] = {**_SESSION, "default_transaction_read_only": "on"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What a run copied.

    Attributes:
        spans: rows of llm_traces that are new in the target.
        logs: rows of llm_logs that were written.
        windows: days that were copied; those that an earlier run had copied and that have settled are left alone.
        skipped: days that were left alone.
    """

    spans: int
    logs: int
    windows: int
    skipped: int


OnWindow = Callable[[datetime, int], None]  # the day, and the spans that were new


def _kept(name: str) -> str:
    return name


def _pseudonym(name: str, prefix: str) -> str:
    digest = f"encode(sha256(convert_to(current_setting('observatory.salt') || {name}, 'UTF8')), 'hex')"
    return f"'{prefix}-' || left({digest}, 20)"


def _blank(name: str) -> str:
    """As long as it was, so that sizes stay those of production."""
    return f"repeat('x', length({name}))"


def _blank_json(name: str) -> str:
    return f"jsonb_build_object('masked', repeat('x', length({name}::text)))"


_ROLES = "'system', 'user', 'assistant', 'tool'"
_MESSAGES = f"""
    (SELECT jsonb_agg(jsonb_build_object(
        'role', CASE WHEN part ->> 'role' IN ({_ROLES}) THEN part ->> 'role' ELSE 'other' END,
        'content', repeat('x', length(coalesce(part ->> 'content', '')))))
    FROM jsonb_array_elements(CASE jsonb_typeof(input_messages) WHEN 'array' THEN input_messages ELSE '[]' END) AS part)
"""  # noqa: S608 - constants

_MASKED_TAGS = f"SELECT {_pseudonym('tag', 'tag')} FROM unnest(tags) AS tag"  # noqa: S608 - constants

# Every column of a table that is copied, and what of it leaves the source. A column that is not here is not copied.
MASKS: dict[str, dict[str, str]] = {
    "llm_traces": {
        **{
            name: _kept(name)
            for name in (
                *("ts", "trace_id", "span_id", "parent_span_id", "span_name", "span_kind", "provider", "model"),
                *("input_type", "finish_reason", "prompt_tokens", "completion_tokens", "total_tokens"),
                *("prompt_cost_usd", "completion_cost_usd", "total_cost_usd", "duration_ms", "ttft_ms", "status_code"),
                *("environment", "sampled", "sample_rate"),
            )
        },
        **{name: _blank(name) for name in ("input_text", "output_text", "error_message")},
        **{name: _blank_json(name) for name in ("attributes", "resource_attributes", "events", "links")},
        "input_messages": _MESSAGES,
        "user_id": _pseudonym("user_id", "user"),
        "session_id": _pseudonym("session_id", "session"),
        "tags": f"CASE WHEN tags IS NOT NULL THEN ARRAY({_MASKED_TAGS}) END",
    },
    "llm_logs": {
        **{
            name: _kept(name) for name in ("ts", "trace_id", "span_id", "log_level", "provider", "model", "environment")
        },
        "message": _blank("message"),
        "attributes": _blank_json("attributes"),
    },
    "users": {
        "id": _pseudonym("id", "user"),
        "email": _pseudonym("email", "mail") + " || '@example.invalid'",
        "name": _pseudonym("name", "name"),
        "created_at": "created_at",
        "metadata": _blank_json("metadata"),
    },
    "projects": {
        "id": "id",
        "name": _pseudonym("name", "project"),
        "slug": _pseudonym("slug", "project"),
        "owner_id": _pseudonym("owner_id", "user"),
        "created_at": "created_at",
        "settings": _blank_json("settings"),
    },
    "model_pricing": {
        name: _kept(name)
        for name in (
            "effective_date",
            "provider",
            "model",
            "prompt_cost_per_1k",
            "completion_cost_per_1k",
            "created_at",
        )
    },
}

# 32 bits of the hash: a fraction is met to a billionth, and evenly whatever the ids look like.
_CHOSEN = "('x' || left(md5(trace_id), 8))::bit(32)::bigint < {limit}"
_IN_WINDOW = "ts >= {start} AND ts < {end} AND trace_id IS NOT NULL AND " + _CHOSEN
_HASH_VALUES = 2**32

# The days that have rows: chunks, in either table.
_PERIODS = """
    SELECT DISTINCT range_start, range_end FROM timescaledb_information.chunks
    WHERE hypertable_schema = 'public' AND hypertable_name IN ('llm_traces', 'llm_logs') ORDER BY range_start, range_end
"""
_HAS_ITS_OWN = "SELECT to_regclass('observatory.sample_windows') IS NULL AND EXISTS (SELECT FROM llm_traces)"
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
    """Copy a masked sample of one database into another; run again, it goes on where it was and repeats nothing.

    Args:
        source: a direct connection (no transaction pooler) as a role that may read; a standby will do.
        target: a direct connection as the role that owns the schema, with the same migrations.
        fraction: of the traces, above 0 and at most 1.
        salt: secret of the pseudonyms; the same one each time, so that a user stays the same user.
        samples_only: refuse a target with traces that no sample has brought: it may be a database in use.
        on_window: gets the progress.

    Raises:
        SampleError: the fraction or the salt is no good, source and target are one database, or the target is refused.
        StatementFailedError: PostgreSQL refused; the days that were copied before stay.
        UnreachableError: no connection, or it broke; the days that were copied before stay.
    """
    _check(fraction, salt)
    with (
        connect(source, purpose="sample", settings=_SOURCE) as reader,
        connect(target, purpose="sample", settings=_SESSION) as writer,
        translate_errors(f"sample of {describe(source)} for {describe(target)}"),
    ):
        _refuse_one_database(reader, writer)
        if samples_only and writer.execute(_HAS_ITS_OWN).fetchone() == (True,):
            raise SampleError(
                f"{describe(target)} has traces, and no sample was ever copied into it: it may be in use. Name its "
                "stack, or a database without traces"
            )
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ  # a day's traces, logs and users fit together
        reader.execute("SELECT set_config('observatory.salt', %s, false)", [salt])
        writer.execute("SET client_min_messages = warning")
        writer.execute(_WINDOWS)
        name = f"{describe(source)}, {fraction:g}, {hashlib.sha256(salt.encode()).hexdigest()[:16]}"
        copier = _Copier(reader=reader, writer=writer, limit=round(fraction * _HASH_VALUES), sample=name)
        copier.copy_tables()
        return copier.copy_windows(on_window)


def _check(fraction: float, salt: str) -> None:
    if not 0 < fraction <= 1:
        raise SampleError(f"A fraction of {fraction:g} of the traces: give one above 0 and at most 1, such as 0.15")
    if len(salt) < MIN_SALT_LENGTH:
        raise SampleError(
            f"A salt of {len(salt)} characters lets anybody guess who is who: give at least {MIN_SALT_LENGTH}"
        )


def _refuse_one_database(reader: psycopg.Connection, writer: psycopg.Connection) -> None:
    """Whatever the two are called: a lock that one session takes, another session of the same database cannot."""
    key = [random.getrandbits(62)]
    reader.execute("SELECT pg_advisory_lock(%s)", key)
    if writer.execute("SELECT pg_try_advisory_lock(%s)", key).fetchone() != (True,):
        raise SampleError("Source and target are the same database. Name another target")
    for connection in (reader, writer):
        connection.execute("SELECT pg_advisory_unlock(%s)", key)


@dataclass(frozen=True, kw_only=True)
class _Copier:
    """Copies between two sessions; `limit` is the hash below which a trace is in the sample."""

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
        """Copy the days that were not, each in one transaction of the target."""
        spans = logs = windows = skipped = 0
        done = self._done()
        for start, end in self.reader.execute(_PERIODS).fetchall():
            if start in done:
                skipped += 1
                continue
            new, lines = self._copy_window(start, end)
            spans, logs, windows = spans + new, logs + lines, windows + 1
            if on_window:
                on_window(start, new)
        return Sample(spans=spans, logs=logs, windows=windows, skipped=skipped)

    def _done(self) -> set[datetime]:
        query = "SELECT starts_at FROM observatory.sample_windows WHERE sample = %s"
        return {row[0] for row in self.writer.execute(query, [self.sample]).fetchall()}

    def _copy_window(self, start: datetime, end: datetime) -> tuple[int, int]:
        values = {"start": sql.Literal(start), "end": sql.Literal(end), "limit": sql.Literal(self.limit)}
        inside = sql.SQL(_IN_WINDOW).format(**values)
        users = sql.SQL("id IN (SELECT user_id FROM llm_traces WHERE {})").format(inside)
        with self.reader.transaction(), self.writer.transaction():
            self._copy("users", users)
            spans = self._copy("llm_traces", inside)
            # Log lines have no key by which a repeated one could be known: a day's are replaced.
            self.writer.execute(sql.SQL("DELETE FROM llm_logs WHERE {}").format(inside))
            logs = self._copy("llm_logs", inside)
            if end + SETTLED < datetime.now(UTC):
                record = "INSERT INTO observatory.sample_windows (sample, starts_at) VALUES (%s, %s)"
                self.writer.execute(record, [self.sample, start])
        return spans, logs

    def _copy(self, table: str, condition: sql.Composable) -> int:
        """Stream the chosen rows, masked, through a temporary table; return how many are new."""
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
