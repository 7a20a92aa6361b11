"""Moves a database from the files of TimescaleDB's Apache edition to those of the community edition.

The server runs the community edition already (`timescaledb.license = 'timescale'`), but what the migrations made is
still the Apache edition's: aggregates as hypertables, jobs of pg_cron. Here they become what the community files make,
with all that was computed before, and the ledger says so. One transaction: it is done, or nothing was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psycopg
from psycopg import sql

from observatory.database import ledger
from observatory.database.connection import connect, describe
from observatory.database.deployment import status
from observatory.database.errors import UnsuitableServerError
from observatory.database.files import Migration, load_migrations
from observatory.database.lock import MIGRATION_LOCK, session_lock
from observatory.database.translation import readable

LOCK_WAIT_S = 60.0
_SESSION = {"search_path": "public", "lock_timeout": "10s", "statement_timeout": "0"}

# What the community edition's files make anew, or do without.
_STAND_INS = (
    "DROP PROCEDURE IF EXISTS observatory.refresh_aggregate, observatory.drop_old_chunks",
    "DROP TABLE IF EXISTS observatory.aggregates, observatory.jobs, observatory.edition_gaps",
)
_AGGREGATES = "SELECT name FROM observatory.aggregates ORDER BY name"
_MATERIALIZED = """
    SELECT materialization_hypertable_schema, materialization_hypertable_name
    FROM timescaledb_information.continuous_aggregates WHERE view_schema = 'public' AND view_name = %s
"""
_COLUMNS = """
    SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_RECORD = """
    UPDATE observatory.schema_migrations
    SET variant = 'community', edition = 'community', sha256 = %(sha256)s, source = %(source)s,
        statement_hashes = %(hashes)s, statements_done = %(total)s, statements_total = %(total)s,
        applied_at = clock_timestamp(), applied_by = %(actor)s, deployment_id = %(deployment_id)s
    WHERE version = %(version)s
"""


def upgrade_edition(conninfo: str, *, migrations: Path, actor: str, deployment_id: str) -> tuple[str, ...]:
    """Replace what the Apache edition's files made by what the community edition's make; nothing where that is so.

    Writers wait while it runs: about as long as copying the aggregates takes. Make a backup first. Afterwards
    `schedule_jobs` takes the stand-ins' jobs away, and `grant_access` gives the service the new views.

    Args:
        conninfo: a direct connection as the role that owns the schema.
        migrations: directory of the files.
        actor: who does it, for the ledger.
        deployment_id: which deployment this is, for the ledger.

    Returns:
        Names of the migrations whose variant changed.

    Raises:
        MigrationFileError: an unusable file; nothing was changed.
        MigrationHistoryError: files and ledger contradict each other; nothing was changed.
        LockHeldError: a deployment runs; nothing was changed.
        StatementFailedError: PostgreSQL refused; nothing was changed.
        UnreachableError: no connection, or it broke; nothing was changed.
        UnsuitableServerError: a standby, or the Apache edition.
    """
    state = status(conninfo, migrations=migrations)
    if state.edition == "apache":
        raise UnsuitableServerError(
            f"{describe(conninfo)} runs TimescaleDB's Apache edition. Install the community edition, set "
            "timescaledb.license = 'timescale' and restart the server, then run again"
        )
    versions = {entry.version for entry in state.applied if entry.variant == "apache" and entry.complete}
    files = [each for each in load_migrations(migrations, "community") if each.version in versions]
    if files:
        author = ledger.Author(actor=actor, deployment_id=deployment_id, edition="community")
        with (
            connect(conninfo, purpose=f"deploy {deployment_id}", settings=_SESSION) as connection,
            readable(f"upgrade of {describe(conninfo)} to the community edition"),
            session_lock(connection, MIGRATION_LOCK, wait_s=LOCK_WAIT_S),
            connection.transaction(),
        ):
            _replace(connection, files, author)
    return tuple(migration.name for migration in files)


def _replace(connection: psycopg.Connection, files: Sequence[Migration], author: ledger.Author) -> None:
    from observatory.database.statements import parse  # noqa: PLC0415 - the parser only where there is work

    names = [row[0] for row in connection.execute(_AGGREGATES).fetchall()]
    for name in names:
        views = [sql.Identifier("public", name), sql.Identifier("observatory", f"{name}_live")]
        connection.execute(sql.SQL("DROP VIEW {}").format(sql.SQL(", ").join(views)))
    for stand_in in _STAND_INS:
        connection.execute(stand_in.encode())
    for migration in files:
        script = parse(migration)
        for statement in script.statements:
            connection.execute(statement.sql.encode())
        values = {
            "version": migration.version,
            "sha256": migration.sha256,
            "source": migration.sql,
            "hashes": [statement.sha256 for statement in script.statements],
            "total": len(script.statements),
            "actor": author.actor,
            "deployment_id": author.deployment_id,
        }
        connection.execute(_RECORD, values)
    for name in names:
        _move_history(connection, name)


def _move_history(connection: psycopg.Connection, name: str) -> None:
    """Copy what was computed, of which the raw rows may be gone, into the continuous aggregate."""
    before = sql.Identifier("observatory", name)
    columns = [sql.Identifier(row[0]) for row in connection.execute(_COLUMNS, [f"observatory.{name}"]).fetchall()]
    schema, table = connection.execute(_MATERIALIZED, [name]).fetchone() or ("", "")
    listed = sql.SQL(", ").join(columns)
    copy = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}")
    connection.execute(copy.format(sql.Identifier(schema, table), listed, listed, before))
    connection.execute(sql.SQL("DROP TABLE {}").format(before))
