"""Refreshes the aggregates of restored rows: continuous aggregates, and those of the Apache edition.

The Apache edition's are refreshed in the transaction of the rows. A continuous aggregate cannot be: what is to be
refreshed is recorded in that transaction, and the record is removed after the refresh, so that an interrupted run is
completed by the next one.
"""

from __future__ import annotations

from datetime import datetime
from typing import LiteralString

import psycopg
from psycopg import sql

from observatory.backups.flashback.errors import NotRefreshedError
from observatory.backups.flashback.tables import Table
from observatory.database.error_translation import error_summary

Period = tuple[datetime, datetime]  # of the first and the last restored row

_SOURCE = ("public", "llm_traces")  # of all aggregates of the Apache edition
_HAS_OWN = "SELECT to_regproc('observatory.refresh_aggregate') IS NOT NULL"
_OWN: LiteralString = """
    SELECT name, time_bucket(bucket, %(first)s), least(time_bucket(bucket, %(last)s) + bucket, now() - refresh_to)
    FROM observatory.aggregates
    WHERE time_bucket(bucket, least(time_bucket(bucket, %(last)s) + bucket, now() - refresh_to))
          > time_bucket(bucket, %(first)s)
    ORDER BY bucket, name
"""
_PENDING: LiteralString = """
    CREATE TABLE IF NOT EXISTS observatory.flashback_refreshes (
        view_schema  text NOT NULL,
        view_name    text NOT NULL,
        window_start timestamptz NOT NULL,
        window_end   timestamptz NOT NULL
    )
"""
_HAS_PENDING = "SELECT to_regclass('observatory.flashback_refreshes') IS NOT NULL"
# An aggregate may aggregate another one. A refresh computes the buckets that lie wholly inside its window.
_CONTINUOUS: LiteralString = """
    INSERT INTO observatory.flashback_refreshes
    WITH RECURSIVE affected AS (
        SELECT view_schema, view_name, materialization_hypertable_schema AS schema,
               materialization_hypertable_name AS name
        FROM timescaledb_information.continuous_aggregates
        WHERE hypertable_schema = %(schema)s AND hypertable_name = %(name)s
        UNION ALL
        SELECT c.view_schema, c.view_name, c.materialization_hypertable_schema, c.materialization_hypertable_name
        FROM affected a JOIN timescaledb_information.continuous_aggregates c
            ON (c.hypertable_schema, c.hypertable_name) = (a.schema, a.name)
    ), oldest AS (
        SELECT min(range_start) AS start FROM timescaledb_information.chunks
        WHERE hypertable_schema = %(schema)s AND hypertable_name = %(name)s
    )
    SELECT a.view_schema, a.view_name, greatest(%(first)s - b.bucket_width::interval, oldest.start),
           least(%(last)s + b.bucket_width::interval, now())
    FROM affected a CROSS JOIN oldest
    JOIN _timescaledb_catalog.continuous_agg c ON (c.user_view_schema, c.user_view_name) = (a.view_schema, a.view_name)
    JOIN _timescaledb_catalog.continuous_aggs_bucket_function b USING (mat_hypertable_id)
    WHERE least(%(last)s + b.bucket_width::interval, now())
          > greatest(%(first)s - b.bucket_width::interval, oldest.start) + 2 * b.bucket_width::interval
"""
_HAS_CONTINUOUS: LiteralString = """
    SELECT EXISTS (SELECT FROM timescaledb_information.continuous_aggregates
                   WHERE hypertable_schema = %s AND hypertable_name = %s)
"""


def refresh_with_rows(writer: psycopg.Connection, table: Table, period: Period) -> list[str]:
    """Refresh, in the transaction of the rows, what can be refreshed in it; record the rest. Return the refreshed."""
    window = {"first": period[0], "last": period[1]}
    if _flag(writer, _HAS_OWN):
        if (table.schema, table.name) != _SOURCE:
            return []
        found = writer.execute(_OWN, window).fetchall()
        for aggregate in found:
            writer.execute("CALL observatory.refresh_aggregate(%s, %s, %s)", aggregate)
        return [name for name, _, _ in found]
    if writer.execute(_HAS_CONTINUOUS, [table.schema, table.name]).fetchone() == (True,):
        writer.execute(_PENDING)
        writer.execute(_CONTINUOUS, {**window, "schema": table.schema, "name": table.name})
    return []


def refresh_recorded(writer: psycopg.Connection) -> list[str]:
    """Refresh the continuous aggregates that are recorded, also by an interrupted run, and return their names.

    Raises:
        NotRefreshedError: PostgreSQL refused a refresh; the record stays for the next run.
    """
    if not _flag(writer, _HAS_PENDING):
        return []
    recorded = writer.execute("TABLE observatory.flashback_refreshes").fetchall()
    for schema, name, start, end in recorded:
        view = sql.Identifier(schema, name).as_string(writer)
        try:
            writer.execute(
                "CALL refresh_continuous_aggregate(%s::regclass, %s::timestamptz, %s::timestamptz)",
                [
                    view,
                    start,
                    end,
                ],
            )
        except psycopg.Error as error:
            raise NotRefreshedError(
                f"the rows were restored, but {view} was not refreshed from {start} to {end}: {error_summary(error)}",
                remedy="Run the same command again: it refreshes the aggregate, and restores nothing twice.",
            ) from error
        writer.execute(
            "DELETE FROM observatory.flashback_refreshes WHERE (view_schema, view_name, window_start, window_end) = "
            "(%s, %s, %s, %s)",
            [schema, name, start, end],
        )
    return list(dict.fromkeys(name for _, name, _, _ in recorded))


def _flag(connection: psycopg.Connection, query: LiteralString) -> bool:
    return connection.execute(query).fetchone() == (True,)
