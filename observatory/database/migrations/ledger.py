"""The ledger `observatory.schema_migrations`: the applied migrations, and the progress of an interrupted one.

Owns the table's shape and every statement that reads or writes it. Does not read files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import psycopg
from psycopg.rows import class_row

from observatory.database.migrations.files import Edition, Migration

SCHEMA = "observatory"
BASELINE_MARK = "baseline by "  # before the actor: the file was recorded as applied, not applied

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
    # Columns that older ledgers lack.
    """
    ALTER TABLE observatory.schema_migrations
        ADD COLUMN IF NOT EXISTS backup_label text,
        ADD COLUMN IF NOT EXISTS statement_running text
    """,
    """
    COMMENT ON TABLE observatory.schema_migrations IS
        'Migrations applied to this database; statements_done < statements_total: interrupted, the next run resumes it'
    """,
    """
    COMMENT ON COLUMN observatory.schema_migrations.backup_label IS 'Backup that was made right before; null: none was'
    """,
    """
    COMMENT ON COLUMN observatory.schema_migrations.statement_running IS
        'SHA-256 of the statement that was begun outside a transaction; null: none, or it is done'
    """,
)
_EXISTS = "SELECT to_regclass('observatory.schema_migrations') IS NOT NULL"
_IS_CURRENT = """
    SELECT count(*) = 2 FROM pg_attribute
    WHERE attrelid = to_regclass('observatory.schema_migrations') AND NOT attisdropped
      AND attname IN ('backup_label', 'statement_running')
"""

_READ = """
    SELECT version, name, variant, sha256, edition, statements_done, statements_total, duration_ms, applied_at,
           applied_by, deployment_id, {backup_label} AS backup_label
    FROM observatory.schema_migrations ORDER BY version
"""

# Returns one row, not thousands. The lines equal those of `files.read_manifest`.
_DIGEST = """
    SELECT CASE WHEN bool_and(statements_done = statements_total) THEN max(version) END,
           sha256(convert_to(string_agg(line, E'\n' ORDER BY line COLLATE "C"), 'UTF8'))
    FROM observatory.schema_migrations, concat(name, '.' || variant, ' ', sha256) AS line
"""

_RECORD = """
    INSERT INTO observatory.schema_migrations
        (version, name, variant, sha256, source, edition, statements_done, statements_total, statement_hashes,
         duration_ms, applied_by, deployment_id, backup_label, statement_running)
    VALUES (%(version)s, %(name)s, %(variant)s, %(sha256)s, %(source)s, %(edition)s, cardinality(%(hashes)s::text[]),
            %(total)s, %(hashes)s, %(duration_ms)s, %(actor)s, %(deployment_id)s, %(backup_label)s, %(running)s)
"""

_RESUME = """
    ON CONFLICT (version) DO UPDATE SET
        sha256 = excluded.sha256, source = excluded.source, statements_done = excluded.statements_done,
        statements_total = excluded.statements_total, statement_hashes = excluded.statement_hashes,
        duration_ms = schema_migrations.duration_ms + excluded.duration_ms, applied_at = excluded.applied_at,
        applied_by = excluded.applied_by, deployment_id = excluded.deployment_id,
        backup_label = coalesce(excluded.backup_label, schema_migrations.backup_label),
        statement_running = excluded.statement_running
    WHERE schema_migrations.statements_done < schema_migrations.statements_total
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A row of the ledger.

    Attributes:
        version: the migration's number.
        name: `001_initial_schema`.
        variant: the edition that the file is for; None is for all.
        sha256: of the file as it was applied.
        edition: of TimescaleDB when it was applied.
        statements_done: committed statements of the file.
        statements_total: statements in the file.
        duration_ms: time spent in the file's statements.
        applied_at: when the last of them finished.
        applied_by: the actor of the deployment.
        deployment_id: of the deployment that applied it.
        backup_label: the backup that was made right before; None: none was made.
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
    backup_label: str | None

    @property
    def stem(self) -> str:
        """The file's name without `.sql`."""
        return f"{self.name}.{self.variant}" if self.variant else self.name

    @property
    def baselined(self) -> bool:
        """Whether the file was only recorded, because other tools had made its objects."""
        return self.applied_by.startswith(BASELINE_MARK)

    @property
    def complete(self) -> bool:
        """Whether all statements are done."""
        return self.statements_done == self.statements_total


@dataclass(frozen=True, kw_only=True, slots=True)
class Author:
    """The origin of a ledger row; `backup_label` names the backup that was made right before."""

    actor: str
    deployment_id: str
    edition: Edition
    backup_label: str | None = None


class Progress(NamedTuple):
    """The progress of an interrupted migration.

    Attributes:
        done: SHA-256 of the statements that are done, in order.
        running: SHA-256 of a statement that was begun outside a transaction and may have taken effect; None: there is
            none.
    """

    done: tuple[str, ...]
    running: str | None


def create(connection: psycopg.Connection) -> None:
    """Create the ledger, or add the columns that an older one lacks. The caller holds the migration lock."""
    if not _first(connection, _IS_CURRENT):
        with connection.transaction():
            connection.execute("SET LOCAL client_min_messages = warning")
            for statement in _CREATE:
                connection.execute(statement.encode())


def read(connection: psycopg.Connection) -> tuple[Entry, ...]:
    """Return all rows by version; none when the database has no ledger yet."""
    if not _first(connection, _EXISTS):
        return ()
    backup_label = "backup_label" if _first(connection, _IS_CURRENT) else "NULL"
    with connection.cursor(row_factory=class_row(Entry)) as cursor:
        return tuple(cursor.execute(_READ.format(backup_label=backup_label).encode()).fetchall())


def version_of(connection: psycopg.Connection, manifest: Sequence[str]) -> int | None:
    """Return the version of a database that has exactly these files completely applied; None for any other.

    Args:
        connection: to the database.
        manifest: names and hashes of the files, from `files.read_manifest`.
    """
    if not manifest or not _first(connection, _EXISTS):
        return None
    version, digest = connection.execute(_DIGEST.encode()).fetchone() or (None, None)
    expected = hashlib.sha256(os.fsencode("\n".join(manifest))).digest()
    return version if digest == expected else None


def source(connection: psycopg.Connection, version: int) -> str:
    """Return the text of a migration at the time it was applied."""
    query = "SELECT source FROM observatory.schema_migrations WHERE version = %s"
    row = connection.execute(query, [version]).fetchone()
    return str(row[0]) if row else ""


def progress(connection: psycopg.Connection, version: int) -> Progress:
    """Return the progress of a migration that runs statement by statement."""
    query = "SELECT statement_hashes, statement_running FROM observatory.schema_migrations WHERE version = %s"
    row = connection.execute(query, [version]).fetchone()
    return Progress(tuple(row[0]), row[1]) if row else Progress((), None)


def record(
    connection: psycopg.Connection,
    migration: Migration,
    author: Author,
    *,
    hashes: Sequence[str],
    total: int,
    duration_ms: int,
    resumable: bool = False,
    running: str | None = None,
) -> None:
    """Write a migration's row, inside the caller's transaction where there is one.

    Args:
        connection: to the database.
        migration: the file.
        author: of the row.
        hashes: SHA-256 of the finished statements, in order.
        total: number of statements in the file.
        duration_ms: time since the row was last written.
        resumable: the row may already exist with fewer finished statements.
        running: SHA-256 of the statement that starts now outside a transaction.

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
        "backup_label": author.backup_label,
        "running": running,
    }
    connection.execute(_RECORD + _RESUME if resumable else _RECORD, values)


def _first(connection: psycopg.Connection, query: str) -> bool:
    row = connection.execute(query.encode()).fetchone()
    return bool(row and row[0])
