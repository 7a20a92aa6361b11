"""The ledger `observatory.schema_migrations`: the applied migrations, and the progress of an interrupted one.

Owns the table's shape and every statement that reads or writes it. Does not read files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import class_row

from observatory.database.advisory_locks import LOCK_CLASS, MIGRATION_LOCK
from observatory.database.errors import MigrationHistoryError
from observatory.database.migrations.files import Edition, Migration

SCHEMA = "observatory"
BASELINE_MARK = "baseline by "  # before the actor: the file was recorded as applied, not applied

_CREATE = (
    "CREATE SCHEMA IF NOT EXISTS observatory",
    """
    CREATE TABLE IF NOT EXISTS observatory.schema_migrations (
        version           integer PRIMARY KEY CHECK (version > 0),
        name              text NOT NULL,
        variant           text CHECK (variant IN ('apache', 'community')),
        sha256            text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
        source            text NOT NULL,
        edition           text NOT NULL CHECK (edition IN ('apache', 'community')),
        statements_done   integer NOT NULL CHECK (statements_done BETWEEN 0 AND statements_total),
        statements_total  integer NOT NULL,
        duration_ms       integer NOT NULL CHECK (duration_ms >= 0),
        applied_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
        applied_by        text NOT NULL,
        deployment_id     text NOT NULL
    )
    """,
    # Columns that older ledgers lack.
    """
    ALTER TABLE observatory.schema_migrations
        ADD COLUMN IF NOT EXISTS backup_label text,
        ADD COLUMN IF NOT EXISTS statement_running text,
        ADD COLUMN IF NOT EXISTS statements_digest text,
        ADD COLUMN IF NOT EXISTS note text
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
    """
    COMMENT ON COLUMN observatory.schema_migrations.statements_digest IS
        'SHA-256 over the hashes of the finished statements'
    """,
    """
    COMMENT ON COLUMN observatory.schema_migrations.note IS
        'Why the row was written or changed by hand; null: a deployment applied the file'
    """,
)
# Older ledgers have one hash for each finished statement: 200 KB to write after each statement of a long file.
_CONVERT = (
    """
    UPDATE observatory.schema_migrations
    SET statements_digest = encode(sha256(convert_to(array_to_string(statement_hashes, ''), 'UTF8')), 'hex')
    """,
    "ALTER TABLE observatory.schema_migrations DROP COLUMN statement_hashes",
)
_COLUMNS = """
    SELECT attname FROM pg_attribute
    WHERE attrelid = to_regclass('observatory.schema_migrations') AND attnum > 0 AND NOT attisdropped
"""
_OPTIONAL = frozenset({"backup_label", "statement_running", "statements_digest", "note"})
_OLD_DIGEST = "encode(sha256(convert_to(array_to_string(statement_hashes, ''), 'UTF8')), 'hex')"
_EXISTS = "SELECT to_regclass('observatory.schema_migrations') IS NOT NULL"

_READ = """
    SELECT version, name, variant, sha256, edition, statements_done, statements_total, duration_ms, applied_at,
           applied_by, deployment_id, {backup_label} AS backup_label, {note} AS note
    FROM observatory.schema_migrations ORDER BY version
"""
_PROGRESS = """
    SELECT statements_done, {digest}, {running}, source FROM observatory.schema_migrations WHERE version = %s
"""

# Returns one row, not thousands. The lines equal those of `files.read_manifest`.
_DIGEST = """
    SELECT CASE WHEN bool_and(statements_done = statements_total) THEN max(version) END,
           sha256(convert_to(string_agg(line, E'\n' ORDER BY line COLLATE "C"), 'UTF8'))
    FROM observatory.schema_migrations, concat(name, '.' || variant, ' ', sha256) AS line
"""

# In the statement that writes the row, so that the check takes no round trip of its own.
LOCK_IS_HELD = f"""
    RETURNING EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = {LOCK_CLASS}
           AND objid = {MIGRATION_LOCK.key} AND objsubid = 2 AND pid = %(holder)s)
"""
_INSERT = f"""
    INSERT INTO observatory.schema_migrations
        (version, name, variant, sha256, source, edition, statements_done, statements_total, statements_digest,
         duration_ms, applied_by, deployment_id, backup_label, statement_running, note)
    VALUES (%(version)s, %(name)s, %(variant)s, %(sha256)s, %(source)s, %(edition)s, %(done)s, %(total)s, %(digest)s,
            %(duration_ms)s, %(actor)s, %(deployment_id)s, %(backup_label)s, %(running)s, %(note)s)
    {LOCK_IS_HELD}
"""  # noqa: S608 - constants
_RESUME = """
    UPDATE observatory.schema_migrations
    SET name = %(name)s, variant = %(variant)s, sha256 = %(sha256)s, source = %(source)s, edition = %(edition)s,
        statements_total = %(total)s, statement_running = %(running)s, applied_at = clock_timestamp(),
        applied_by = %(actor)s, deployment_id = %(deployment_id)s,
        backup_label = coalesce(%(backup_label)s, backup_label)
    WHERE version = %(version)s AND statements_done = %(done)s AND statements_digest = %(digest)s
"""
# Leaves `source` out: PostgreSQL would write the whole text again.
_ADVANCE = f"""
    UPDATE observatory.schema_migrations
    SET statements_done = %(done)s, statements_digest = %(digest)s, statement_running = %(running)s,
        duration_ms = duration_ms + %(duration_ms)s, applied_at = clock_timestamp()
    WHERE version = %(version)s AND statements_done = %(before)s
    {LOCK_IS_HELD}
"""  # noqa: S608 - constants
_WITHDRAW = (
    "DELETE FROM observatory.schema_migrations WHERE version = %s AND statements_done = 0",
    "UPDATE observatory.schema_migrations SET statement_running = NULL WHERE version = %s",
)


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
        note: why the row was written or changed by hand; None: a deployment applied the file.
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
    note: str | None = None

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
        done: number of statements that are done.
        digest: SHA-256 over the hashes of these statements, see `statements_digest`.
        running: SHA-256 of a statement that was begun outside a transaction and may have taken effect; None: there is
            none.
        source: the file's text when the row was last written.
    """

    done: int
    digest: str
    running: str | None
    source: str


def statements_digest(hashes: Iterable[str]) -> str:
    """Return the digest of statements by their SHA-256, in order."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def create(connection: psycopg.Connection) -> None:
    """Create the ledger, or bring an older one up to date. The caller holds the migration lock."""
    columns = _columns(connection)
    if columns >= _OPTIONAL and "statement_hashes" not in columns:
        return
    with connection.transaction():
        connection.execute("SET LOCAL client_min_messages = warning")
        for statement in (*_CREATE, *(_CONVERT if "statement_hashes" in columns else ())):
            connection.execute(statement.encode())


def read(connection: psycopg.Connection) -> tuple[Entry, ...]:
    """Return all rows by version; none when the database has no ledger yet."""
    columns = _columns(connection)
    if not columns:
        return ()
    query = _READ.format(**{name: name if name in columns else "NULL" for name in ("backup_label", "note")})
    with connection.cursor(row_factory=class_row(Entry)) as cursor:
        return tuple(cursor.execute(query.encode()).fetchall())


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


def progress(connection: psycopg.Connection, version: int) -> Progress | None:
    """Return the progress of a migration that runs statement by statement; None: it has no row. Reads older ledgers."""
    columns = _columns(connection)
    if not columns:
        return None
    digest = _OLD_DIGEST if "statement_hashes" in columns else "statements_digest"
    running = "statement_running" if "statement_running" in columns else "NULL"
    row = connection.execute(_PROGRESS.format(digest=digest, running=running).encode(), [version]).fetchone()
    return Progress(*row) if row else None


def insert(
    connection: psycopg.Connection,
    migration: Migration,
    author: Author,
    *,
    hashes: Sequence[str],
    total: int,
    duration_ms: int,
    holder: int,
    running: str | None = None,
    note: str | None = None,
) -> bool:
    """Write a migration's new row, inside the caller's transaction where there is one.

    Args:
        connection: to the database.
        migration: the file.
        author: of the row.
        hashes: SHA-256 of the finished statements, in order.
        total: number of statements in the file.
        duration_ms: time spent in these statements.
        holder: process id of the session that must hold the migration lock.
        running: SHA-256 of the statement that starts now outside a transaction.
        note: why the row is written by hand.

    Returns:
        Whether that session holds the migration lock.

    Raises:
        psycopg.errors.UniqueViolation: the version has a row.
    """
    done = {"done": len(hashes), "digest": statements_digest(hashes)}
    values = {"duration_ms": duration_ms, "holder": holder, "running": running, "note": note, **done}
    row = connection.execute(_INSERT.encode(), {**_described(migration, author, total), **values}).fetchone()
    return bool(row and row[0])


class Steps:
    """The row of a migration that runs statement by statement; its first statement inserts it.

    A method that returns a boolean returns whether the session `holder` holds the migration lock.
    """

    def __init__(self, migration: Migration, author: Author, *, total: int, holder: int) -> None:
        self._migration, self._author, self._total, self._holder = migration, author, total, holder
        self._done, self._hash = 0, hashlib.sha256()
        self._stored = False

    def resume(self, connection: psycopg.Connection, hashes: Sequence[str], *, running: str | None) -> None:
        """Continue the row of an interrupted run, and record the file as it is now.

        Args:
            connection: to the database.
            hashes: SHA-256 of the finished statements, in order.
            running: SHA-256 of the next statement where it was begun; None: it was not.
        """
        self._done, self._stored = len(hashes), True
        self._hash.update("".join(hashes).encode())
        values = {"done": self._done, "digest": self._hash.hexdigest(), "running": running}
        described = _described(self._migration, self._author, self._total)
        self._one_row(connection.execute(_RESUME, {**described, **values}))

    def begin(self, connection: psycopg.Connection, sha256: str) -> bool:
        """Record that a statement starts now outside a transaction."""
        return self._write(connection, before=self._done, running=sha256, duration_ms=0)

    def finish(self, connection: psycopg.Connection, sha256: str, *, duration_ms: int) -> bool:
        """Record that the next statement is done, inside the caller's transaction where there is one."""
        before = self._done
        self._done += 1
        self._hash.update(sha256.encode())
        return self._write(connection, before=before, running=None, duration_ms=duration_ms)

    def withdraw(self, connection: psycopg.Connection) -> None:
        """Record that the begun statement failed: without a finished statement, no row stays."""
        for statement in _WITHDRAW:
            connection.execute(statement.encode(), [self._migration.version])

    def _write(self, connection: psycopg.Connection, *, before: int, running: str | None, duration_ms: int) -> bool:
        values = {
            "version": self._migration.version,
            "done": self._done,
            "before": before,
            "digest": self._hash.hexdigest(),
            "running": running,
            "duration_ms": duration_ms,
            "holder": self._holder,
            "note": None,
        }
        if self._stored:
            row = self._one_row(connection.execute(_ADVANCE.encode(), values)).fetchone()
        else:
            described = _described(self._migration, self._author, self._total)
            row = connection.execute(_INSERT.encode(), {**described, **values}).fetchone()
            self._stored = True
        return bool(row and row[0])

    def _one_row(self, cursor: psycopg.Cursor) -> psycopg.Cursor:
        if cursor.rowcount != 1:
            raise MigrationHistoryError(
                f"{self._migration.place()}: another session changed the file's row in the ledger while it ran. Find "
                "out which statement or session writes to observatory.schema_migrations, then run again"
            )
        return cursor


def _described(migration: Migration, author: Author, total: int) -> dict[str, Any]:
    return {
        "version": migration.version,
        "name": migration.name,
        "variant": migration.variant,
        "sha256": migration.sha256,
        "source": migration.sql,
        "edition": author.edition,
        "total": total,
        "actor": author.actor,
        "deployment_id": author.deployment_id,
        "backup_label": author.backup_label,
    }


def _columns(connection: psycopg.Connection) -> set[str]:
    """Return the ledger's columns; none where there is no ledger."""
    return {name for (name,) in connection.execute(_COLUMNS.encode())}


def _first(connection: psycopg.Connection, query: str) -> bool:
    row = connection.execute(query.encode()).fetchone()
    return bool(row and row[0])
