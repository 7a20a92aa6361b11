"""Statements that remove or change rows of the ledger by hand. Each changes one row, and only as it was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from observatory.database.errors import RepairRefusedError
from observatory.database.migrations import ledger
from observatory.database.migrations.files import Migration

_UNCHANGED = "version = %(old)s AND sha256 = %(old_sha256)s AND statements_done = %(old_done)s"
_REMOVE = f"DELETE FROM observatory.schema_migrations WHERE {_UNCHANGED}"  # noqa: S608 - a constant
_MOVE = f"""
    UPDATE observatory.schema_migrations SET version = %(version)s, name = %(name)s, note = %(note)s WHERE {_UNCHANGED}
"""  # noqa: S608 - a constant
_REPLACE = f"""
    UPDATE observatory.schema_migrations
    SET name = %(name)s, sha256 = %(sha256)s, source = %(source)s, statements_done = %(done)s,
        statements_total = %(total)s, statements_digest = %(digest)s, statement_running = NULL, note = %(note)s
    WHERE {_UNCHANGED}
"""  # noqa: S608 - a constant


def remove(connection: psycopg.Connection, entry: ledger.Entry) -> None:
    """Remove a row."""
    _change(connection, _REMOVE, entry, {})


def move(connection: psycopg.Connection, entry: ledger.Entry, name: str, version: int, *, note: str) -> None:
    """Give a row another number and name."""
    _change(connection, _MOVE, entry, {"version": version, "name": name, "note": note})


def replace(
    connection: psycopg.Connection,
    entry: ledger.Entry,
    migration: Migration,
    *,
    hashes: Sequence[str],
    done: int,
    note: str,
) -> None:
    """Give a row the present text of its file.

    Args:
        connection: to the database.
        entry: the row.
        migration: the file.
        hashes: SHA-256 of its statements, in order.
        done: number of statements that are recorded as finished.
        note: why.
    """
    values = {
        "name": migration.name,
        "sha256": migration.sha256,
        "source": migration.sql,
        "done": done,
        "total": len(hashes),
        "digest": ledger.statements_digest(hashes[:done]),
        "note": note,
    }
    _change(connection, _REPLACE, entry, values)


def _change(connection: psycopg.Connection, query: str, entry: ledger.Entry, values: Mapping[str, Any]) -> None:
    before = {"old": entry.version, "old_sha256": entry.sha256, "old_done": entry.statements_done}
    if connection.execute(query.encode(), {**before, **values}).rowcount != 1:
        raise RepairRefusedError(
            f"{entry.stem}.sql: its row in the ledger changed meanwhile, and nothing was repaired. Print the plan again"
        )
