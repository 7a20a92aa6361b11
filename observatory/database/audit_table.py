"""The audit table `audit.entries`: entries are added, never changed or removed.

A superuser creates the table, because the schema's owner `auditor` cannot log in. No other role has any privilege on
it, not even the migrator. A trigger refuses UPDATE, DELETE and TRUNCATE also to a superuser, who would have to drop the
trigger first; PostgreSQL logs that (`log_statement = ddl`).

Owns the entries of commands. Triggers add those of administrators' changes (`observatory.database.roles.audit_schema`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors
from observatory.database.roles.audit_schema import TABLE, audit_exists, ensure_table

if TYPE_CHECKING:
    import psycopg

# The audit does not delay a command: the next command writes the entries that this one could not.
TIMEOUTS = {"lock_timeout": "2s", "statement_timeout": "10s"}
CONNECT_TIMEOUT_S = 3


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One event: its id, time (seconds since the epoch), actor, name and details."""

    id: str
    at: float
    actor: str
    event: str
    details: dict[str, Any]


def add_entries(conninfo: str, entries: Iterable[AuditEntry]) -> int:
    """Add the entries that the table lacks; return their number.

    Args:
        conninfo: to the database, as superuser.
        entries: new ones and ones that the table already has.

    Raises:
        UnreachableError: the connection failed.
        StatementFailedError: PostgreSQL rejected a statement, or it timed out.
    """
    from psycopg.types.json import Jsonb  # noqa: PLC0415 - psycopg only where it is used

    with _session(conninfo) as connection, translate_errors(TABLE), connection.transaction():
        ensure_table(connection)
        given = list(entries)
        known = f"SELECT id FROM {TABLE} WHERE id = ANY (%s)"  # noqa: S608 - a constant
        present = {row[0] for row in connection.execute(known, [[entry.id for entry in given]])}
        missing = [entry for entry in given if entry.id not in present]
        with connection.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO {TABLE} (id, at, actor, event, details) VALUES (%s, %s, %s, %s, %s) "  # noqa: S608
                "ON CONFLICT (id) DO NOTHING",
                [(e.id, datetime.fromtimestamp(e.at, UTC), e.actor, e.event, Jsonb(e.details)) for e in missing],
            )
    return len(missing)


def read_entries(conninfo: str) -> list[AuditEntry]:
    """Return all entries, oldest first.

    Raises:
        UnreachableError: the connection failed.
        StatementFailedError: PostgreSQL rejected a statement, or it timed out.
    """
    with _session(conninfo) as connection, translate_errors(TABLE):
        if not audit_exists(connection):
            return []
        rows = connection.execute(
            f"SELECT id, extract(epoch FROM at)::float8, actor, event, details FROM {TABLE} ORDER BY at, id"  # noqa: S608
        ).fetchall()
    return [AuditEntry(id=row[0], at=row[1], actor=row[2], event=row[3], details=row[4]) for row in rows]


@contextmanager
def _session(conninfo: str) -> Iterator[psycopg.Connection]:
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415

    quick = make_conninfo(conninfo, connect_timeout=CONNECT_TIMEOUT_S)
    with connect(quick, purpose="audit", settings=TIMEOUTS) as connection:
        yield connection
