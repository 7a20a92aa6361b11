"""The audit table `audit.entries`: entries are added, never changed or removed.

The first entry creates the table, as superuser, because the schema's owner `auditor` cannot log in. No other role has
any privilege on it, not even the migrator. A trigger refuses UPDATE, DELETE and TRUNCATE also to a superuser, who would
have to drop the trigger first; PostgreSQL logs that (`log_statement = ddl`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from observatory.database.advisory_locks import BOOTSTRAP_LOCK, LOCK_CLASS
from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors
from observatory.database.roles.bootstrap import AUDIT_SCHEMA, AUDITOR

if TYPE_CHECKING:
    import psycopg

TABLE = f"{AUDIT_SCHEMA}.entries"
# The audit does not delay a command: the next command writes the entries that this one could not.
TIMEOUTS = {"lock_timeout": "2s", "statement_timeout": "10s"}
CONNECT_TIMEOUT_S = 3

_CREATE = f"""
    CREATE TABLE {TABLE} (
        id text PRIMARY KEY,
        at timestamptz NOT NULL,
        actor text NOT NULL,
        event text NOT NULL,
        details jsonb NOT NULL,
        recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        recorded_by text NOT NULL DEFAULT session_user
    );
    CREATE FUNCTION {AUDIT_SCHEMA}.refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
        BEGIN
            RAISE EXCEPTION '% on %.% is refused: the audit is only added to', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
                USING ERRCODE = 'insufficient_privilege';
        END $$;
    REVOKE ALL ON FUNCTION {AUDIT_SCHEMA}.refuse_change() FROM PUBLIC;
    CREATE TRIGGER only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON {TABLE}
        FOR EACH STATEMENT EXECUTE FUNCTION {AUDIT_SCHEMA}.refuse_change();
    ALTER TABLE {TABLE} OWNER TO {AUDITOR};
    ALTER FUNCTION {AUDIT_SCHEMA}.refuse_change() OWNER TO {AUDITOR};
"""


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
        _ensure_table(connection)
        present = {row[0] for row in connection.execute(f"SELECT id FROM {TABLE}")}  # noqa: S608 - a constant
        missing = [entry for entry in entries if entry.id not in present]
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
        if not _exists(connection):
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


def _ensure_table(connection: psycopg.Connection) -> None:
    """Create the table where it is missing; a concurrent command waits for it."""
    if not _exists(connection):
        connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", [LOCK_CLASS, BOOTSTRAP_LOCK.key])
        if not _exists(connection):
            connection.execute(_CREATE)


def _exists(connection: psycopg.Connection) -> bool:
    row = connection.execute("SELECT to_regclass(%s)", [TABLE]).fetchone()
    return row is not None and row[0] is not None
