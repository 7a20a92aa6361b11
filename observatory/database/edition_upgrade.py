"""Upgrades a database from the objects of TimescaleDB's Apache edition to those of the community edition.

The server already runs the community edition (`timescaledb.license = 'timescale'`), but the database still has the
Apache edition's objects: aggregates as hypertables, jobs of pg_cron. The upgrade replaces them by those of the
community files, keeps the computed history, and updates the ledger, all in one transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psycopg
from psycopg import errors as pg
from psycopg import sql

from observatory.database.advisory_locks import MIGRATION_LOCK, session_lock
from observatory.database.connection import connect, describe
from observatory.database.deployment import LOCK_WAIT_S, Deployment, status
from observatory.database.edition_obstacles import find_obstacles, own_jobs
from observatory.database.error_translation import translate_errors
from observatory.database.errors import DrillRequiredError, EditionRefusedError
from observatory.database.migration_backup import Backup, PlannedBackup, make_backup, plan_backup
from observatory.database.migration_session import LOCK_TIMEOUT_MS, MIGRATION_SETTINGS
from observatory.database.migrations import ledger
from observatory.database.migrations.blocking_sessions import BlockingSession, BlockingSessionWatch
from observatory.database.migrations.events import EventKind, OnEvent, report_event
from observatory.database.migrations.files import Migration, load_migrations
from observatory.database.migrations.numbering import version_in

_READ_ONLY = {"default_transaction_read_only": "on"}
_LIBRARY = "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'"
# Objects that the community edition's files replace or do not need.
_REPLACED_OBJECTS = (
    "DROP PROCEDURE IF EXISTS observatory.refresh_aggregate, observatory.drop_old_chunks",
    "DROP TABLE IF EXISTS observatory.aggregates, observatory.jobs, observatory.edition_gaps",
)
_KEEP_JOB = """
    INSERT INTO observatory.jobs (name, schedule, command) VALUES (%s, %s, %s) ON CONFLICT (name) DO NOTHING
"""
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
        statements_digest = %(digest)s, statements_done = %(total)s, statements_total = %(total)s,
        applied_at = clock_timestamp(), applied_by = %(actor)s, deployment_id = %(deployment_id)s,
        backup_label = %(backup_label)s
    WHERE version = %(version)s
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditionPlan:
    """The actions that `upgrade_edition` would take.

    Attributes:
        migrations: names of the migrations whose variant would change; empty when there is nothing to do.
        aggregates: bytes to copy, by the aggregate's name.
        backup: the backup that would be made first; None: no backup would be made.
        obstacles: what would stop the move, or what it would break, a line for each with its name.
    """

    migrations: tuple[str, ...]
    aggregates: dict[str, int]
    backup: PlannedBackup | None
    obstacles: tuple[str, ...] = ()


def plan_upgrade(
    conninfo: str, *, migrations: Path, target: int | None = None, backup: Backup | None = None
) -> EditionPlan:
    """Plan what `upgrade_edition` would do with the same arguments. Reads only and takes no advisory lock.

    Raises:
        BackupFailedError: the backups cannot be listed.
        DatabaseError: see `upgrade_edition`.
    """
    files = _outdated(conninfo, migrations, target)
    aggregates: dict[str, int] = {}
    obstacles: tuple[str, ...] = ()
    if files:
        with connect(conninfo, purpose="plan", settings=_READ_ONLY) as connection, translate_errors(describe(conninfo)):
            aggregates = dict(connection.execute(_STORED).fetchall())
            obstacles = find_obstacles(connection, files)
    if files and backup:
        obstacles = (*obstacles, *_drill_lacks(backup))
    return EditionPlan(
        migrations=tuple(migration.name for migration in files),
        aggregates=aggregates,
        backup=plan_backup(backup) if files and backup else None,
        obstacles=obstacles,
    )


def _drill_lacks(backup: Backup) -> Iterator[str]:
    try:
        backup.check_permitted()
    except DrillRequiredError as error:
        yield str(error)


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
    """Replace the objects of the Apache edition by those of the community edition; does nothing a second time.

    Writers wait while it runs, about as long as it takes to copy the aggregates. Call `finish_deployment` afterwards:
    it unschedules the replaced jobs and grants privileges on the new views.

    Args:
        conninfo: a direct connection as the role that owns the schema.
        migrations: directory of the files.
        target: expected version of the database; None is the newest file's.
        actor: who upgrades; written to the ledger.
        deployment_id: written to the ledger.
        backup: makes a backup first, the only way to return; None: no backup is made.
        retry: highest number of retries when other sessions hold its locks.
        on_event: called with the progress.

    Returns:
        The result; `applied` names the migrations whose variant changed.

    Raises:
        EditionRefusedError, MigrationFileError, MigrationHistoryError, LockHeldError, BackupFailedError: the upgrade
            was refused; nothing was changed.
        LockTimeoutError, StatementFailedError: the upgrade failed; nothing was changed.
        UnreachableError: the connection failed or broke; nothing was changed.
        UnsuitableServerError: a standby, or no TimescaleDB.
    """
    started, label = time.monotonic(), None
    files = _outdated(conninfo, migrations, target)
    if files:
        upgrade = _Upgrade(conninfo=conninfo, actor=actor, deployment_id=deployment_id, retry=retry, on_event=on_event)
        files, label = upgrade.run(lambda: _outdated(conninfo, migrations, target), backup)
    return Deployment(
        applied=tuple(migration.name for migration in files),
        version=max(
            (
                each.version
                for each in load_migrations(migrations, "community")
                if target is None or each.version <= target
            ),
            default=0,
        ),
        edition="community",
        backup_label=label,
        duration_ms=round((time.monotonic() - started) * 1000),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Upgrade:
    """One call of `upgrade_edition` with work to do; the attributes are its arguments."""

    conninfo: str
    actor: str
    deployment_id: str
    retry: int
    on_event: OnEvent | None

    def run(self, outdated: Callable[[], list[Migration]], backup: Backup | None) -> tuple[list[Migration], str | None]:
        """Upgrade under the lock; return the files whose variant changed, and the backup's label."""
        # Imported here: tenacity is needed only where there is work.
        from observatory.database.migrations.lock_retries import run_with_lock_retries  # noqa: PLC0415

        with (
            connect(self.conninfo, purpose=f"deploy {self.deployment_id}", settings=MIGRATION_SETTINGS) as connection,
            translate_errors(f"upgrade of {describe(self.conninfo)} to the community edition"),
            BlockingSessionWatch(self.conninfo, delay_s=LOCK_TIMEOUT_MS / 2000) as watch,
            session_lock(connection, MIGRATION_LOCK, wait_s=LOCK_WAIT_S, on_wait=self._report_waiting),
        ):
            files, label = outdated(), None  # another deployment may have upgraded meanwhile
            if files:
                _refuse_obstacles(self.conninfo, find_obstacles(connection, files))
                if backup:
                    backup.check_permitted()
                label = make_backup(backup, partial(self._report, "backup")) if backup else None
                author = ledger.Author(
                    actor=self.actor, deployment_id=self.deployment_id, edition="community", backup_label=label
                )
                self._report("applying", f"the community edition's files: {', '.join(file.name for file in files)}")
                ledger.create(connection)
                run_with_lock_retries(
                    partial(self._attempt, connection, files, author, watch),
                    retry=self.retry,
                    on_retry=partial(self._report, "retrying"),
                )
        return files, label

    def _attempt(
        self,
        connection: psycopg.Connection,
        files: Sequence[Migration],
        author: ledger.Author,
        watch: BlockingSessionWatch,
        past_autovacuum: bool,
    ) -> None:
        """Replace everything in one transaction; name the sessions that block it."""
        from observatory.database.migrations.lock_retries import (  # noqa: PLC0415 - see `run`
            lock_timeout_error,
            outlast_autovacuum,
        )

        watch.begin(connection.info.backend_pid, self._report_blocked)
        try:
            with connection.transaction():
                if past_autovacuum:
                    outlast_autovacuum(connection)
                _replace(connection, files, author)
        except (pg.LockNotAvailable, pg.DeadlockDetected) as error:
            raise lock_timeout_error("upgrade to the community edition", error, watch.seen) from error
        finally:
            watch.end()

    def _report(self, kind: EventKind, detail: str) -> None:
        report_event(self.on_event, kind, None, detail)

    def _report_waiting(self, holder: str) -> None:
        self._report("waiting", f"for the migration lock, held by {holder}")

    def _report_blocked(self, sessions: tuple[BlockingSession, ...]) -> None:
        self._report("blocked", f"by {'; '.join(map(str, sessions))}")


def _outdated(conninfo: str, migrations: Path, target: int | None) -> list[Migration]:
    """Return the community edition's files that replace applied ones of the Apache edition.

    Raises:
        EditionRefusedError: the server runs the Apache edition, or migrations are pending.
    """
    state = status(conninfo, migrations=migrations)
    if state.edition == "apache":
        raise EditionRefusedError(_apache_message(conninfo))
    if pending := [name for name in state.pending if target is None or version_in(name) <= target]:
        raise EditionRefusedError(
            f"{describe(conninfo)} has pending migrations: {', '.join(pending)}. Apply them with `observatory deploy "
            "database`, then run this again"
        )
    versions = {entry.version for entry in state.applied if entry.variant == "apache"}
    return [each for each in load_migrations(migrations, "community") if each.version in versions]


def _refuse_obstacles(conninfo: str, obstacles: Sequence[str]) -> None:
    if obstacles:
        listed = "\n".join(f"- {each}" for each in obstacles)
        raise EditionRefusedError(
            f"{describe(conninfo)} cannot be moved to the community edition; nothing was changed:\n{listed}"
        )


def _apache_message(conninfo: str) -> str:
    with connect(conninfo, purpose="version of TimescaleDB") as connection:
        [version] = connection.execute(_LIBRARY).fetchone() or ("?",)
    return (
        f"{describe(conninfo)} runs the Apache edition of TimescaleDB {version}. Install the community edition of the "
        "same version on its server, set timescaledb.license = 'timescale', restart PostgreSQL, then run again"
    )


def _replace(connection: psycopg.Connection, files: Sequence[Migration], author: ledger.Author) -> None:
    from observatory.database.migrations.statements import parse  # noqa: PLC0415 - loads the SQL parser

    names = [row[0] for row in connection.execute(_AGGREGATES).fetchall()]
    kept = own_jobs(connection, files)
    for name in names:
        views = [sql.Identifier("public", name), sql.Identifier("observatory", f"{name}_live")]
        connection.execute(sql.SQL("DROP VIEW {}").format(sql.SQL(", ").join(views)))
    for drop in _REPLACED_OBJECTS:
        connection.execute(drop.encode())
    for migration in files:
        script = parse(migration)
        for statement in script.statements:
            connection.execute(statement.sql.encode())
        values = {
            "version": migration.version,
            "sha256": migration.sha256,
            "source": migration.sql,
            "digest": ledger.statements_digest(statement.sha256 for statement in script.statements),
            "total": len(script.statements),
            "actor": author.actor,
            "deployment_id": author.deployment_id,
            "backup_label": author.backup_label,
        }
        connection.execute(_RECORD, values)
    for name in names:
        _move_history(connection, name)
    for job in kept:
        connection.execute(_KEEP_JOB, job)


def _move_history(connection: psycopg.Connection, name: str) -> None:
    """Copy the computed rows into the continuous aggregate; their raw rows may no longer exist."""
    replaced = sql.Identifier("observatory", name)
    columns = [sql.Identifier(row[0]) for row in connection.execute(_COLUMNS, [f"observatory.{name}"]).fetchall()]
    schema, table = connection.execute(_MATERIALIZED, [name]).fetchone() or ("", "")
    listed = sql.SQL(", ").join(columns)
    copy = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}")
    connection.execute(copy.format(sql.Identifier(schema, table), listed, listed, replaced))
    connection.execute(sql.SQL("DROP TABLE {}").format(replaced))
