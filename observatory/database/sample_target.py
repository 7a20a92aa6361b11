"""The target of a sample: which key its pseudonyms are of, whether it has other data, and how it is emptied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import LiteralString

import psycopg
from psycopg import sql

from observatory.database.errors import SampleError
from observatory.database.verification_rows import MARK, PROBE_MARK

DEMONSTRATION = "demonstration"  # tag of the traces that the first `up` writes

# The earlier table has the windows of samples whose masks left names, models and times readable.
_HAS_EARLIER = "SELECT to_regclass('observatory.sample_windows') IS NOT NULL"
_RECORDED = "SELECT to_regclass('observatory.sample_key') IS NOT NULL"
_STATE = """
    CREATE TABLE IF NOT EXISTS observatory.sample_key (
        key_id  text NOT NULL,
        masks   text NOT NULL,
        created timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE IF NOT EXISTS observatory.sample_days (
        sample    text NOT NULL,
        starts_at timestamptz NOT NULL,
        copied_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (sample, starts_at)
    )
"""
# Rows of other origin: no sample has such ids, and the stack itself has not written them.
_OTHER: dict[str, LiteralString] = {
    "llm_traces": "NOT starts_with(trace_id, 'trace-') AND provider <> ALL (%(own)s) "
    "AND NOT tags @> ARRAY[%(tag)s::text] IS TRUE",
    "llm_logs": "starts_with(trace_id, 'trace-') IS NOT TRUE AND provider <> ALL (%(own)s) IS NOT FALSE",
    "llm_metrics": "provider <> ALL (%(own)s)",
    "users": "NOT starts_with(id, 'user-')",
    "projects": "NOT starts_with(name, 'project-')",
}
_EMPTY: tuple[LiteralString, ...] = (
    "TRUNCATE llm_traces, llm_logs",
    "DELETE FROM projects",
    "DELETE FROM users WHERE starts_with(id, 'user-')",
    "DELETE FROM model_pricing",
    "DROP TABLE IF EXISTS observatory.sample_windows",
    "TRUNCATE observatory.sample_key, observatory.sample_days",
)
# What was computed from the traces: tables of the Apache edition, or views of the community's continuous aggregates.
_COMPUTED = """
    SELECT 'observatory', name FROM observatory.aggregates
"""
_CONTINUOUS = "SELECT view_schema, view_name FROM timescaledb_information.continuous_aggregates"
_RETENTION_POLICIES = """
    SELECT hypertable_name, (config ->> 'drop_after')::interval FROM timescaledb_information.jobs
    WHERE proc_name = 'policy_retention' AND hypertable_schema = 'public'
"""
_RETENTION_JOBS = """
    SELECT substring(command FROM $$'public\\.([^']+)'$$), substring(command FROM $$INTERVAL '([^']+)'$$)::interval
    FROM observatory.jobs WHERE command LIKE 'CALL observatory.drop\\_old\\_chunks(''public.%'
"""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The target of a sample, in a session that holds its lock.

    Attributes:
        writer: the session, as the role that owns the schema.
        name: of the target, for messages.
        key_id: of the key of the pseudonyms.
        masks: digest of the masks.
    """

    writer: psycopg.Connection
    name: str
    key_id: str
    masks: str

    def prepare(self, *, save_key: Callable[[], None] | None, keep_own_data: bool) -> None:
        """Refuse a target that this sample cannot be copied to; with a new key, which `save_key` stores, empty it.

        Raises:
            SampleError: nothing was changed.
        """
        new_key = save_key is not None
        recorded, earlier = self._recorded(), self._flag(_HAS_EARLIER)
        others = self._other_data()
        if others and new_key and not earlier:
            raise SampleError(
                f"{self.name} has data that no sample copied, in {', '.join(others)}, and a new key would empty it. "
                "Remove that data, or choose another target"
            )
        if not new_key:
            self._refuse_other_sample(recorded, earlier=earlier)
            if others and not keep_own_data:
                raise SampleError(
                    f"{self.name} has data that no sample copied, in {', '.join(others)}, so it may be in use. Choose "
                    "another target, or copy the sample beside that data with --keep-own-data"
                )
        with self.writer.transaction():
            self.writer.execute(_STATE)
            if new_key:
                self._empty()
                recorded = None
            if recorded is None:
                record = "INSERT INTO observatory.sample_key (key_id, masks) VALUES (%s, %s)"
                self.writer.execute(record, [self.key_id, self.masks])
            if save_key:
                save_key()  # before the commit: a key that cannot be stored leaves the target as it is

    def retention(self) -> dict[str, timedelta]:
        """Return how long the target keeps rows, by table."""
        found: dict[str, timedelta] = dict(self.writer.execute(_RETENTION_POLICIES).fetchall())
        if self._flag("SELECT to_regclass('observatory.jobs') IS NOT NULL"):
            found |= dict(self.writer.execute(_RETENTION_JOBS).fetchall())
        return found

    def _refuse_other_sample(self, recorded: tuple[str, str] | None, *, earlier: bool) -> None:
        again = "Empty it and copy again with --new-key"
        if recorded is None and earlier:
            raise SampleError(
                f"{self.name} has a sample of an earlier version, in which names, models and times are readable. "
                f"{again}"
            )
        if recorded is None:
            return
        if recorded[0] != self.key_id:
            raise SampleError(f"{self.name} has a sample with another key, so one user would be two. {again}")
        if recorded[1] != self.masks:
            raise SampleError(f"{self.name} has a sample with other masks or known values. {again}")

    def _recorded(self) -> tuple[str, str] | None:
        if not self._flag(_RECORDED):
            return None
        return self.writer.execute("SELECT key_id, masks FROM observatory.sample_key").fetchone()

    def _flag(self, query: LiteralString) -> bool:
        return self.writer.execute(query).fetchone() == (True,)

    def _other_data(self) -> list[str]:
        values = {"own": [MARK, PROBE_MARK], "tag": DEMONSTRATION}
        queries = {
            table: sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {})").format(sql.Identifier(table), sql.SQL(condition))
            for table, condition in _OTHER.items()
        }
        return [table for table, query in queries.items() if self.writer.execute(query, values).fetchone() == (True,)]

    def _empty(self) -> None:
        for statement in _EMPTY:
            self.writer.execute(statement)
        computed = self.writer.execute(_CONTINUOUS).fetchall()
        if self._flag("SELECT to_regclass('observatory.aggregates') IS NOT NULL"):
            computed += self.writer.execute(_COMPUTED).fetchall()
        for schema, name in computed:
            self.writer.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(schema, name)))
