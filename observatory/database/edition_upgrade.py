"""Moves a database from the files of TimescaleDB's Apache edition to those of the community edition.

The server runs the community edition already (`timescaledb.license = 'timescale'`), but what the migrations made is
still the Apache edition's: aggregates as hypertables, jobs of pg_cron. Here they become what the community files make,
with all that was computed before, and the ledger says so. One transaction: it is done, or nothing was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg import errors as pg
from psycopg import sql

from observatory.database.advisory_locks import MIGRATION_LOCK, session_lock
from observatory.database.connection import connect, describe
from observatory.database.deployment import LOCK_WAIT_S, SESSION, Deployment, status
from observatory.database.error_translation import translate_errors
from observatory.database.errors import EditionRefusedError, LockTimeoutError
from observatory.database.migration_backup import Backup, PlannedBackup, make_backup, plan_backup
from observatory.database.migrations import ledger
from observatory.database.migrations.blocking_sessions import Blocker, BlockerWatch
from observatory.database.migrations.files import Migration, load_migrations

if TYPE_CHECKING:
    from observatory.database.migrations.applying import EventKind, OnEvent

_READ_ONLY = {"default_transaction_read_only": "on"}
_LIBRARY = "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'"
# What the community edition's files make anew, or do without.
_STAND_INS = (
    "DROP PROCEDURE IF EXISTS observatory.refresh_aggregate, observatory.drop_old_chunks",
    "DROP TABLE IF EXISTS observatory.aggregates, observatory.jobs, observatory.edition_gaps",
)
_AGGREGATES = "SELECT name FROM observatory.aggregates ORDER BY name"
_STORED = """
    SELECT name, hypertable_size(format('observatory.%I', name)::regclass) FROM observatory.aggregates ORDER BY name
"""
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
        applied_at = clock_timestamp(), applied_by = %(actor)s, deployment_id = %(deployment_id)s,
        backup_label = %(backup_label)s
    WHERE version = %(version)s
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditionPlan:
    """What `upgrade_edition` would do.

    Attributes:
        migrations: names of those whose variant would change; empty when there is nothing to do.
        aggregates: bytes that would be copied, by the aggregate's name.
        backup: what would be made first; None: none would.
    """

    migrations: tuple[str, ...]
    aggregates: dict[str, int]
    backup: PlannedBackup | None


def plan_upgrade(
    conninfo: str, *, migrations: Path, target: int | None = None, backup: Backup | None = None
) -> EditionPlan:
    """Say what `upgrade_edition` would do, with the same arguments; it writes nothing and takes no lock of ours.

    Raises:
        BackupFailedError: the backups cannot be listed.
        DatabaseError: see `upgrade_edition`.
    """
    files = _outdated(conninfo, migrations, target)
    aggregates = {}
    if files:
        with connect(conninfo, purpose="plan", settings=_READ_ONLY) as connection, translate_errors(describe(conninfo)):
            aggregates = dict(connection.execute(_STORED).fetchall())
    return EditionPlan(
        migrations=tuple(migration.name for migration in files),
        aggregates=aggregates,
        backup=plan_backup(backup) if files and backup else None,
    )


def upgrade_edition(
    conninfo: str,
    *,
    migrations: Path,
    target: int | None = None,
    actor: str,
    deployment_id: str,
    backup: Backup | None = None,
    retry: int = 5,
    on_event: OnEvent | None = None,
) -> Deployment:
    """Replace what the Apache edition's files made by what the community edition's make; nothing where that is so.

    Writers wait while it runs: about as long as copying the aggregates takes. `finish_deployment` has to follow: it
    takes the stand-ins' jobs away, and gives the roles the new views.

    Args:
        conninfo: a direct connection as the role that owns the schema.
        migrations: directory of the files.
        target: version that the database should have; None is the newest file's.
        actor: who does it, for the ledger.
        deployment_id: which deployment this is, for the ledger.
        backup: makes a backup first, the only way back; None: none is made.
        retry: how often it is tried again when other sessions hold its locks.
        on_event: gets the progress.

    Returns:
        What was done; `applied` names the migrations whose variant changed.

    Raises:
        EditionRefusedError: the server runs the Apache edition, or migrations are pending; nothing was changed.
        MigrationFileError: an unusable file; nothing was changed.
        MigrationHistoryError: files and ledger contradict each other; nothing was changed.
        LockHeldError: a deployment runs; nothing was changed.
        BackupFailedError: no backup, or not a usable one; nothing was changed.
        LockTimeoutError: other sessions kept a needed lock; nothing was changed.
        StatementFailedError: PostgreSQL refused; nothing was changed.
        UnreachableError: no connection, or it broke; nothing was changed.
        UnsuitableServerError: a standby, or no TimescaleDB.
    """
    started, label = time.monotonic(), None
    files = _outdated(conninfo, migrations, target)
    if files:
        # As in `deploy`: what brings the parser only where there is work.
        from observatory.database.migrations.applying import LOCK_TIMEOUT_MS, Event, lock_retries  # noqa: PLC0415

        def tell(kind: EventKind, detail: str) -> None:
            if on_event:
                on_event(Event(kind=kind, migration=None, detail=detail))

        def tell_waiting(holder: str) -> None:
            tell("waiting", f"for the migration lock, held by {holder}")

        with (
            connect(conninfo, purpose=f"deploy {deployment_id}", settings=SESSION) as connection,
            translate_errors(f"upgrade of {describe(conninfo)} to the community edition"),
            BlockerWatch(conninfo, delay_s=LOCK_TIMEOUT_MS / 2000) as watch,
            session_lock(connection, MIGRATION_LOCK, wait_s=LOCK_WAIT_S, on_wait=tell_waiting),
        ):
            files = _outdated(conninfo, migrations, target)  # another deployment may have been here
            if files:
                label = make_backup(backup, lambda detail: tell("backup", detail)) if backup else None
                author = ledger.Author(
                    actor=actor, deployment_id=deployment_id, edition="community", backup_label=label
                )
                attempts = lock_retries(retry, lambda detail: tell("retrying", detail))
                attempts(_upgrade, connection, files, author, watch, lambda seen: tell("blocked", f"by {seen}"))
    return Deployment(
        applied=tuple(migration.name for migration in files),
        version=max((each.version for each in load_migrations(migrations, "community")[:target]), default=0),
        edition="community",
        backup_label=label,
        duration_ms=round((time.monotonic() - started) * 1000),
    )


def _outdated(conninfo: str, migrations: Path, target: int | None) -> list[Migration]:
    """The community edition's files that are to take the place of the Apache edition's; refuses what cannot be."""
    state = status(conninfo, migrations=migrations)
    if state.edition == "apache":
        raise EditionRefusedError(_apache_message(conninfo))
    if pending := state.pending[: None if target is None else max(0, target - state.version)]:
        raise EditionRefusedError(
            f"{', '.join(pending)} of the migrations are pending, and all that there are have to be applied before the "
            "edition changes. Run `observatory deploy database`, then this again"
        )
    versions = {entry.version for entry in state.applied if entry.variant == "apache"}
    return [each for each in load_migrations(migrations, "community") if each.version in versions]


def _apache_message(conninfo: str) -> str:
    with connect(conninfo, purpose="version of TimescaleDB") as connection:
        [version] = connection.execute(_LIBRARY).fetchone() or ("?",)
    return (
        f"{describe(conninfo)} runs the Apache edition of TimescaleDB {version}. Install the community edition of the "
        "same version on its server, set timescaledb.license = 'timescale' where it is 'apache', restart PostgreSQL, "
        "then run again"
    )


def _upgrade(
    connection: psycopg.Connection,
    files: Sequence[Migration],
    author: ledger.Author,
    watch: BlockerWatch,
    on_blocked: Callable[[str], None],
) -> None:
    """All of it in one transaction; names who stood in its way."""
    from observatory.database.migrations.applying import blocked_message  # noqa: PLC0415 - see `upgrade_edition`

    def tell(seen: tuple[Blocker, ...]) -> None:
        on_blocked("; ".join(map(str, seen)))

    watch.begin(connection.info.backend_pid, tell)
    try:
        with connection.transaction():
            _replace(connection, files, author)
    except (pg.LockNotAvailable, pg.DeadlockDetected) as error:
        raise LockTimeoutError(blocked_message("upgrade to the community edition", error, watch.seen)) from error
    finally:
        watch.end()


def _replace(connection: psycopg.Connection, files: Sequence[Migration], author: ledger.Author) -> None:
    from observatory.database.migrations.statements import parse  # noqa: PLC0415 - the parser only where there is work

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
            "backup_label": author.backup_label,
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
