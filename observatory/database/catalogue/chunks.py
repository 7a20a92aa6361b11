"""Compares the indexes of each chunk with those of its hypertable: missing, invalid, and added by hand."""

from __future__ import annotations

from typing import Literal

import psycopg

from observatory.database.catalogue.drift import Drift

# Definitions without the names of index and table; chunks may have their columns in another order.
_INDEXES = """
    WITH chunk AS MATERIALIZED (
        SELECT format('%I.%I', hypertable_schema, hypertable_name) AS hypertable,
               format('%I.%I', chunk_schema, chunk_name) AS name,
               format('%I.%I', hypertable_schema, hypertable_name)::regclass AS parent,
               format('%I.%I', chunk_schema, chunk_name)::regclass AS relation
        FROM timescaledb_information.chunks
    ), index AS MATERIALIZED (
        SELECT i.indrelid, n.nspname || '.' || c.relname AS name, i.indisvalid AND i.indisready AS valid,
               CASE WHEN i.indisunique THEN 'CREATE UNIQUE INDEX ON ' ELSE 'CREATE INDEX ON ' END AS command,
               substring(pg_get_indexdef(i.indexrelid) FROM ' USING .*') AS definition
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE i.indrelid IN (SELECT parent FROM chunk UNION SELECT relation FROM chunk)
    )
"""
_DRIFT = f"""{_INDEXES}
    SELECT 'missing', chunk.hypertable, chunk.name, index.name, index.command || chunk.name || index.definition
    FROM chunk JOIN index ON index.indrelid = chunk.parent
    WHERE index.valid AND NOT EXISTS (
        SELECT FROM index AS own WHERE own.indrelid = chunk.relation
        AND (own.command, own.definition) = (index.command, index.definition))
    UNION ALL
    SELECT CASE WHEN index.valid THEN 'added' ELSE 'invalid' END, chunk.hypertable, chunk.name, index.name,
           index.command || chunk.name || index.definition
    FROM chunk JOIN index ON index.indrelid = chunk.relation
    WHERE NOT index.valid OR NOT EXISTS (
        SELECT FROM index AS whole WHERE whole.indrelid = chunk.parent
        AND (whole.command, whole.definition) = (index.command, index.definition))
    ORDER BY 2, 3, 4
"""  # noqa: S608 - constants


def find_chunk_drift(connection: psycopg.Connection) -> list[Drift]:
    """Return the differences between the indexes of chunks and those of their hypertables.

    Raises:
        psycopg.Error: PostgreSQL rejected a query.
    """
    return [_drift(*row) for row in connection.execute(_DRIFT.encode()).fetchall()]


def _drift(difference: Literal["missing", "invalid", "added"], *names: str) -> Drift:
    hypertable, chunk, index, command = names
    if difference == "added":
        return Drift(
            difference="added",
            kind="index",
            name=index,
            detail=command,
            severity="error" if command.startswith("CREATE UNIQUE") else "warning",
            remedy=f"remove it (DROP INDEX {index}), or create the index on {hypertable} by a migration",
        )
    rebuild = f"create it again: {command}"
    return Drift(
        difference="missing" if difference == "missing" else "changed",
        kind="index",
        name=f"{hypertable}: index {index} of chunk {chunk}",
        detail=f"is {difference}",
        severity="error",
        remedy=rebuild if difference == "missing" else f"its build failed or still runs: DROP INDEX {index}, {rebuild}",
    )
