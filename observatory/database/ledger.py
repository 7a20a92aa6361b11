"""The ledger `observatory.schema_migrations`: which migrations a database has, and how far an interrupted one came.

Owns the table's shape and every statement that reads or writes it. Does not know the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import class_row

from observatory.database.files import Edition, Migration

SCHEMA = "observatory"

_CREATE = (
    "CREATE SCHEMA IF NOT EXISTS observatory",
    """
    CREATE TABLE IF NOT EXISTS observatory.schema_migrations (
        version          integer PRIMARY KEY CHECK (version > 0),
        name             text NOT NULL,
        variant          text CHECK (variant IN ('apache', 'community')),
        sha256           text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
        source           text NOT NULL,
        edition          text NOT NULL CHECK (edition IN ('apache', 'community')),
        statements_done  integer NOT NULL CHECK (statements_done BETWEEN 0 AND statements_total),
        statements_total integer NOT NULL,
        statement_hashes text[] NOT NULL CHECK (cardinality(statement_hashes) = statements_done),
        duration_ms      integer NOT NULL CHECK (duration_ms >= 0),
        applied_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
        applied_by       text NOT NULL,
        deployment_id    text NOT NULL
    )
    """,
    """
    COMMENT ON TABLE observatory.schema_migrations IS
        'Migrations applied to this database; statements_done < statements_total: interrupted, the next run resumes it'
    """,
)

_READ = """
    SELECT version, name, variant, sha256, edition, statements_done, statements_total, duration_ms, applied_at,
           applied_by, deployment_id
    FROM observatory.schema_migrations ORDER BY version
"""

_RECORD = """
    INSERT INTO observatory.schema_migrations
        (version, name, variant, sha256, source, edition, statements_done, statements_total, statement_hashes,
         duration_ms, applied_by, deployment_id)
    VALUES (%(version)s, %(name)s, %(variant)s, %(sha256)s, %(source)s, %(edition)s, cardinality(%(hashes)s::text[]),
            %(total)s, %(hashes)s, %(duration_ms)s, %(actor)s, %(deployment_id)s)
"""

_RESUME = """
    ON CONFLICT (version) DO UPDATE SET
        sha256 = excluded.sha256, source = excluded.source, statements_done = excluded.statements_done,
        statements_total = excluded.statements_total, statement_hashes = excluded.statement_hashes,
        duration_ms = schema_migrations.duration_ms + excluded.duration_ms, applied_at = excluded.applied_at,
        applied_by = excluded.applied_by, deployment_id = excluded.deployment_id
    WHERE schema_migrations.statements_done < schema_migrations.statements_total
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A row of the ledger.

    Attributes:
        version: the migration's number.
        name: `001_initial_schema`.
        variant: the edition that the file was written for; None for all.
        sha256: of the file as it was applied.
        edition: TimescaleDB's edition when it was applied.
        statements_done: committed statements of the file.
        statements_total: statements in the file.
        duration_ms: time in the file's statements.
        applied_at: when the last of them was done.
        applied_by: who ran the deployment.
        deployment_id: which deployment applied it.
    """

    version: int
    name: str
    variant: Edition | None
    sha256: str
    edition: Edition
    statements_done: int
    statements_total: int
    duration_ms: int
    applied_at: datetime
    applied_by: str
    deployment_id: str

    @property
    def stem(self) -> str:
        """The file's name without `.sql`."""
        return f"{self.name}.{self.variant}" if self.variant else self.name

    @property
    def complete(self) -> bool:
        """All statements are done."""
        return self.statements_done == self.statements_total


@dataclass(frozen=True, kw_only=True, slots=True)
class Author:
    """Who applies, as the ledger records it."""

    actor: str
    deployment_id: str
    edition: Edition


def create(connection: psycopg.Connection) -> None:
    """Create the ledger unless it exists; the caller holds the migration lock."""
    if not _exists(connection):
        with connection.transaction():
            for statement in _CREATE:
                connection.execute(statement.encode())


def read(connection: psycopg.Connection) -> tuple[Entry, ...]:
    """All rows by version; none when the database has no ledger yet."""
    if not _exists(connection):
        return ()
    with connection.cursor(row_factory=class_row(Entry)) as cursor:
        return tuple(cursor.execute(_READ).fetchall())


def source(connection: psycopg.Connection, version: int) -> str:
    """The text of an applied migration as it was when it was applied."""
    query = "SELECT source FROM observatory.schema_migrations WHERE version = %s"
    row = connection.execute(query, [version]).fetchone()
    return str(row[0]) if row else ""


def statement_hashes(connection: psycopg.Connection, version: int) -> tuple[str, ...]:
    """SHA-256 of the statements that an interrupted migration has done, in order."""
    query = "SELECT statement_hashes FROM observatory.schema_migrations WHERE version = %s"
    row = connection.execute(query, [version]).fetchone()
    return tuple(row[0]) if row else ()


def record(
    connection: psycopg.Connection,
    migration: Migration,
    author: Author,
    *,
    hashes: Sequence[str],
    total: int,
    duration_ms: int,
    resumable: bool = False,
) -> None:
    """Write a migration's row, in the caller's transaction where there is one.

    Args:
        connection: to the database.
        migration: the file.
        author: who applies it.
        hashes: SHA-256 of the statements done, in order.
        total: number of statements in the file.
        duration_ms: time since the row was last written.
        resumable: the row may exist already, with fewer statements done.

    Raises:
        psycopg.errors.UniqueViolation: another session has applied the same version.
    """
    values = {
        "version": migration.version,
        "name": migration.name,
        "variant": migration.variant,
        "sha256": migration.sha256,
        "source": migration.sql,
        "edition": author.edition,
        "hashes": list(hashes),
        "total": total,
        "duration_ms": duration_ms,
        "actor": author.actor,
        "deployment_id": author.deployment_id,
    }
    connection.execute(_RECORD + _RESUME if resumable else _RECORD, values)


def _exists(connection: psycopg.Connection) -> bool:
    row = connection.execute("SELECT to_regclass('observatory.schema_migrations') IS NOT NULL").fetchone()
    return bool(row and row[0])
