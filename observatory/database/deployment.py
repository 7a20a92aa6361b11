"""Deploys the schema: compares files with the ledger, locks, backs up and applies what is pending.

Owns the public functions `deploy` and `status`. `observatory.database.planning` plans a deployment, and
`observatory.database.post_deployment` completes it with jobs, privileges and verification.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from observatory.database.advisory_locks import MIGRATION_LOCK, session_lock
from observatory.database.connection import connect, describe
from observatory.database.error_translation import translate_errors
from observatory.database.migration_backup import Backup, has_data, make_backup
from observatory.database.migration_session import LOCK_TIMEOUT_MS, MIGRATION_SETTINGS, server_edition, session
from observatory.database.migrations import ledger
from observatory.database.migrations.blocking_sessions import BlockingSessionWatch
from observatory.database.migrations.events import OnEvent, report_event
from observatory.database.migrations.expand_contract import SchemaRequirement
from observatory.database.migrations.files import Edition, Migration, load_migrations, read_repeatables
from observatory.database.migrations.history import compare, current_version, read_files, read_history
from observatory.database.migrations.numbering import reached
from observatory.database.migrations.repeatable import RepeatableEntry, pending_repeatables, read_entries

if TYPE_CHECKING:
    from observatory.database.pending_files import PendingFiles

LOCK_WAIT_S = 60.0

_READ_ONLY: Mapping[str, str] = {"default_transaction_read_only": "on"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """The result of a deployment.

    Attributes:
        applied: names of the migrations that it applied, in order; empty when nothing was pending.
        version: of the schema afterwards; 0 is an empty database.
        edition: of the server's TimescaleDB.
        backup_label: the backup that was made before; None: none was made.
        duration_ms: of the whole call.
    """

    applied: tuple[str, ...]
    version: int
    edition: Edition
    backup_label: str | None
    duration_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemaStatus:
    """The state of a database's schema.

    Attributes:
        version: highest migration that is completely applied; 0 is an empty database.
        edition: of the server's TimescaleDB.
        applied: the ledger's rows.
        pending: names of files that are not applied yet, numbered ones first; empty when no directory was given.
        repeatable: the newest application of each repeatable migration.
    """

    version: int
    edition: Edition
    applied: tuple[ledger.Entry, ...]
    pending: tuple[str, ...]
    repeatable: tuple[RepeatableEntry, ...] = ()


def deploy(
    conninfo: str,
    *,
    migrations: Path,
    target: int | None = None,
    only: str | None = None,
    requirements: Sequence[SchemaRequirement] = (),
    actor: str,
    deployment_id: str,
    backup: Backup | None = None,
    retry: int = 5,
    lock_wait_s: float = LOCK_WAIT_S,
    linted: bool = True,
    on_event: OnEvent | None = None,
) -> Deployment:
    """Apply the pending migrations to a database. Takes no lock when nothing is pending.

    Each file and its ledger row commit together. A file with the header `-- transaction: false` is recorded statement
    by statement, and the next call resumes it.

    Args:
        conninfo: a direct connection (no transaction pooler) as the role that owns the schema.
        migrations: directory of the files.
        target: highest version to apply; None is all.
        only: name of the one file to apply, `004_continuous_aggregates.sql`; None is all.
        requirements: of the releases that the fleets run or keep for a rollback.
        actor: who deploys; written to the ledger.
        deployment_id: written to the ledger and to the session's name.
        backup: makes a backup before the first file, unless the database is empty; None: no backup is made.
        retry: highest number of retries of a file when other sessions hold its locks.
        lock_wait_s: seconds to wait for another deployment.
        linted: whether an error of the linter refuses the deployment; False where the files are those of a release,
            which were linted before.
        on_event: called with the progress.

    Raises:
        MigrationFileError, MigrationHistoryError, ContractRefusedError, ObjectsInTheWayError, LintRefusedError,
            LockHeldError, BackupFailedError, DrillRequiredError: the deployment was refused; nothing was changed.
        LockTimeoutError, StatementFailedError, MigrationLockLostError: a file failed; earlier files stay applied.
        UnreachableError: the connection failed or broke.
        UnsuitableServerError: a standby, or no TimescaleDB.
    """
    run = _Run(
        conninfo=conninfo,
        migrations=migrations,
        target=target,
        only=only,
        requirements=requirements,
        actor=actor,
        deployment_id=deployment_id,
        backup=backup,
        retry=retry,
        lock_wait_s=lock_wait_s,
        linted=linted,
        on_event=on_event,
    )
    return run.deploy()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """One call of `deploy`; most attributes are its arguments."""

    conninfo: str
    migrations: Path
    target: int | None
    only: str | None
    requirements: Sequence[SchemaRequirement]
    actor: str
    deployment_id: str
    backup: Backup | None
    retry: int
    lock_wait_s: float
    linted: bool
    on_event: OnEvent | None

    def deploy(self) -> Deployment:
        started = time.monotonic()
        applied: tuple[str, ...] = ()
        label: str | None = None
        with contextlib.ExitStack() as sessions, translate_errors(describe(self.conninfo)):
            connection = self._open_session(sessions)
            edition = server_edition(connection, self.conninfo)
            history = read_history(
                connection, directory=self.migrations, edition=edition, target=self.target, only=self.only
            )
            version = history.version
            if history.pending or self._pending_repeatables(connection, edition):
                applied, label, version = self._apply_pending(sessions, connection, edition)
        return Deployment(
            applied=applied,
            version=version,
            edition=edition,
            backup_label=label,
            duration_ms=round((time.monotonic() - started) * 1000),
        )

    def _open_session(self, sessions: contextlib.ExitStack) -> psycopg.Connection:
        purpose = f"deploy {self.deployment_id}"
        return sessions.enter_context(connect(self.conninfo, purpose=purpose, settings=MIGRATION_SETTINGS))

    def _apply_pending(
        self, sessions: contextlib.ExitStack, connection: psycopg.Connection, edition: Edition
    ) -> tuple[tuple[str, ...], str | None, int]:
        """Apply the pending files under the lock; return their names, the backup's label, and the schema's version."""
        # Imported here: the SQL parser and tenacity cost more time than a deployment with nothing to do.
        from observatory.database.existing_objects import refuse_existing_objects  # noqa: PLC0415
        from observatory.database.migrations.applying import Applier  # noqa: PLC0415
        from observatory.database.migrations.repeatable import create_table  # noqa: PLC0415

        found = self._read_pending(connection, edition)
        watch = sessions.enter_context(BlockingSessionWatch(self.conninfo, delay_s=LOCK_TIMEOUT_MS / 2000))
        with session_lock(connection, MIGRATION_LOCK, wait_s=self.lock_wait_s, on_wait=self._report_waiting):
            # Another deployment may have applied some of them while this one waited for the lock.
            history = compare(connection, found.files, edition=edition, target=self.target, only=self.only)
            versions = {migration.version for migration in history.pending}
            refuse_existing_objects(
                connection,
                conninfo=self.conninfo,
                migrations=self.migrations,
                history=history,
                scripts=[script for script in found.numbered if script.migration.version in versions],
            )
            is_needed = versions or self._pending_repeatables(connection, edition)
            label = self._back_up(connection) if is_needed else None
            ledger.create(connection)
            if found.repeatable:
                create_table(connection)
            applier = Applier(
                connection=connection,
                reconnect=partial(self._open_session, sessions),
                watch=watch,
                author=ledger.Author(
                    actor=self.actor, deployment_id=self.deployment_id, edition=edition, backup_label=label
                ),
                holder=connection.info.backend_pid,
                retry=self.retry,
                on_event=self.on_event,
            )
            applied = tuple(applier.apply(script) for script in found.numbered if script.migration.version in versions)
            # A numbered file may have dropped what a repeatable one makes.
            again = {migration.name for migration in self._pending_repeatables(applier.connection, edition)}
            applied += tuple(applier.apply(script) for script in found.repeatable if script.migration.name in again)
        return applied, label, current_version(ledger.read(applier.connection)) if applied else history.version

    def _read_pending(self, connection: psycopg.Connection, edition: Edition) -> PendingFiles:
        """Return the pending files, after their checks; report the linter's warnings."""
        from observatory.database.pending_files import read_pending  # noqa: PLC0415 - loads the SQL parser

        found = read_pending(
            connection,
            migrations=self.migrations,
            edition=edition,
            target=self.target,
            only=self.only,
            requirements=self.requirements,
        )
        found.refuse_contracts()
        for finding in found.refuse_findings() if self.linted else ():
            report_event(self.on_event, "finding", finding.file.removesuffix(".sql"), str(finding))
        return found

    def _repeatables(self, edition: Edition) -> tuple[Migration, ...]:
        """Return the repeatable migrations, unless numbered ones stay pending, which they may need."""
        files = () if self.only else read_repeatables(self.migrations, edition)
        if files and self.target is not None and self.target < load_migrations(self.migrations, edition)[-1].version:
            return ()
        return files

    def _pending_repeatables(self, connection: psycopg.Connection, edition: Edition) -> tuple[Migration, ...]:
        files = self._repeatables(edition)
        return pending_repeatables(files, read_entries(connection)) if files else ()

    def _back_up(self, connection: psycopg.Connection) -> str | None:
        if self.backup is None or not has_data(connection):
            return None
        self.backup.check_permitted()
        return make_backup(self.backup, partial(report_event, self.on_event, "backup", None))

    def _report_waiting(self, holder: str) -> None:
        report_event(self.on_event, "waiting", None, f"for the migration lock, held by {holder}")


def reached_version(conninfo: str, needed: int, *, pending: Sequence[int] = ()) -> int:
    """Return the highest applied migration in the range of a needed one: the product's, or own ones from 500 on.

    Args:
        conninfo: to the database.
        needed: the first schema version that a release works with.
        pending: numbers that count as applied.

    Raises:
        UnreachableError: the connection failed or broke.
    """
    applied = (each.version for each in status(conninfo).applied if each.complete)
    return reached((*applied, *pending), needed)


def status(conninfo: str, *, migrations: Path | None = None) -> SchemaStatus:
    """Return the ledger's rows, and with a directory what is pending.

    Raises:
        MigrationFileError: an unusable file.
        MigrationHistoryError: files and ledger contradict each other; not raised without a directory.
        UnreachableError: the connection failed or broke.
        UnsuitableServerError: a standby, or no TimescaleDB.
    """
    with session(conninfo, purpose="status", settings=_READ_ONLY) as (connection, edition):
        entries = ledger.read(connection)
        files = read_files(connection, migrations) if migrations else ()
        pending = compare(connection, files, edition=edition).pending if migrations else ()
        repeated = read_entries(connection)
        if migrations:
            pending = (*pending, *pending_repeatables(read_repeatables(migrations, edition), repeated))
    names = tuple(migration.name for migration in pending)
    return SchemaStatus(
        version=current_version(entries), edition=edition, applied=entries, pending=names, repeatable=repeated
    )
