"""The one path to the schema: compare files and ledger, lock, apply what is pending.

Owns the public functions `deploy` and `status`. What `deploy` would do, `observatory.database.planning` says. Does not
know Pulumi, stacks or fleets.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from observatory.database.advisory_locks import MIGRATION_LOCK, session_lock
from observatory.database.connection import connect, describe
from observatory.database.error_translation import translate_errors
from observatory.database.errors import UnsuitableServerError
from observatory.database.migration_backup import Backup, has_data
from observatory.database.migrations import ledger
from observatory.database.migrations.blocking_sessions import BlockerWatch
from observatory.database.migrations.expand_contract import SchemaRequirement, refuse_contracts
from observatory.database.migrations.files import Edition, read_migrations
from observatory.database.migrations.history import compare, current_version, look

if TYPE_CHECKING:
    from observatory.database.migrations.applying import OnEvent

LOCK_WAIT_S = 60.0

_READ_ONLY: Mapping[str, str] = {"default_transaction_read_only": "on"}

SESSION: Mapping[str, str] = {
    # PostgreSQL queues every later query on the table behind a waiting ALTER: give up soon, and try again.
    "lock_timeout": "500ms",
    # An index build may take hours, whatever the role's own limits for everyday queries.
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # A killed deployment must not keep its locks until the statement that it left behind ends.
    "client_connection_check_interval": "500ms",
    "search_path": "public",
}

_SERVER = """
    SELECT pg_is_in_recovery(), current_setting('timescaledb.license', true),
           EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """What a deployment did.

    Attributes:
        applied: names of the migrations that it applied, in order; empty when nothing was pending.
        version: of the schema afterwards; 0 is an empty database.
        edition: of the server's TimescaleDB.
        backup_label: the backup that was made first; None: none was.
        duration_ms: of the whole call.
    """

    applied: tuple[str, ...]
    version: int
    edition: Edition
    backup_label: str | None
    duration_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemaStatus:
    """Where a database stands.

    Attributes:
        version: highest migration that is completely applied; 0 is an empty database.
        edition: of the server's TimescaleDB.
        applied: the ledger's rows.
        pending: names of files that are not applied yet; empty when no directory was given.
    """

    version: int
    edition: Edition
    applied: tuple[ledger.Entry, ...]
    pending: tuple[str, ...]


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
    on_event: OnEvent | None = None,
) -> Deployment:
    """Bring a database to the files' schema.

    Takes no lock when nothing is pending. Each file and its ledger row commit together; a file with the header
    `-- transaction: false` is recorded statement by statement and resumed by the next call.

    Args:
        conninfo: a direct connection (no transaction pooler) as the role that owns the schema.
        migrations: directory of the files.
        target: highest version to apply; None is all.
        only: name of the one file to apply, `004_continuous_aggregates.sql`; None is all.
        requirements: of the releases that the fleets run or keep for a rollback.
        actor: who deploys, for the ledger.
        deployment_id: which deployment this is, for the ledger and the session's name.
        backup: makes a backup before the first file, unless the database is empty; None: none is made.
        retry: how often a file is tried again when other sessions hold its locks.
        lock_wait_s: how long to wait for another deployment, in seconds.
        on_event: gets the progress.

    Returns:
        What was applied.

    Raises:
        MigrationFileError: an unusable file; nothing was changed.
        MigrationHistoryError: files and ledger contradict each other; nothing was changed.
        ContractRefusedError: a pending file would break a release in use; nothing was changed.
        LockHeldError: another deployment runs; nothing was changed.
        BackupFailedError: no backup, or not a usable one; nothing was changed.
        LockTimeoutError: other sessions kept a needed lock; earlier files stay applied.
        StatementFailedError: PostgreSQL refused a statement; earlier files stay applied.
        UnreachableError: no connection, or it broke.
        UnsuitableServerError: a standby, or no TimescaleDB.
    """
    started = time.monotonic()
    open_session = partial(connect, conninfo, purpose=f"deploy {deployment_id}", settings=SESSION)
    with contextlib.ExitStack() as sessions, translate_errors(describe(conninfo)):
        connection = sessions.enter_context(open_session())
        edition = server_edition(connection, conninfo)
        pending = partial(look, connection, migrations, edition=edition, target=target, only=only)
        history = pending()
        applied: tuple[str, ...] = ()
        label: str | None = None
        if history.pending:
            # Imported here: the parser and the retry library cost more than a whole run with nothing to do.
            from observatory.database.migrations.applying import LOCK_TIMEOUT_MS, Applier  # noqa: PLC0415

            applier = Applier(
                connection=connection,
                reconnect=lambda: sessions.enter_context(open_session()),
                watch=sessions.enter_context(BlockerWatch(conninfo, delay_s=LOCK_TIMEOUT_MS / 2000)),
                author=ledger.Author(actor=actor, deployment_id=deployment_id, edition=edition),
                retry=retry,
                on_event=on_event,
            )
            scripts = applier.parse(history.pending)
            refuse_contracts(scripts, requirements)
            with session_lock(connection, MIGRATION_LOCK, wait_s=lock_wait_s, on_wait=applier.tell_waiting):
                # Another deployment may have been here while this one waited for the lock.
                history = pending()
                versions = {migration.version for migration in history.pending}
                if versions and backup and has_data(connection):
                    label = applier.make_backup(backup)
                ledger.create(connection)
                applied = tuple(applier.apply(script) for script in scripts if script.migration.version in versions)
            connection = applier.connection
        version = current_version(ledger.read(connection)) if applied else history.version
    duration_ms = round((time.monotonic() - started) * 1000)
    return Deployment(applied=applied, version=version, edition=edition, backup_label=label, duration_ms=duration_ms)


def status(conninfo: str, *, migrations: Path | None = None) -> SchemaStatus:
    """Report the ledger, and with a directory what is pending.

    Raises:
        MigrationFileError: an unusable file.
        MigrationHistoryError: files and ledger contradict each other; without a directory there are no files to do so.
        UnreachableError: no connection.
        UnsuitableServerError: a standby, or no TimescaleDB.
    """
    with session(conninfo, purpose="status", settings=_READ_ONLY) as (connection, edition):
        entries = ledger.read(connection)
        pending = compare(connection, read_migrations(migrations), edition=edition).pending if migrations else ()
    names = tuple(migration.name for migration in pending)
    return SchemaStatus(version=current_version(entries), edition=edition, applied=entries, pending=names)


@contextlib.contextmanager
def session(
    conninfo: str, *, purpose: str, settings: Mapping[str, str]
) -> Iterator[tuple[psycopg.Connection, Edition]]:
    """A connection whose errors are translated, and the edition of the server."""
    with connect(conninfo, purpose=purpose, settings=settings) as connection, translate_errors(describe(conninfo)):
        yield connection, server_edition(connection, conninfo)


def server_edition(connection: psycopg.Connection, conninfo: str) -> Edition:
    """The edition of the server's TimescaleDB.

    Raises:
        UnsuitableServerError: a standby, or no TimescaleDB.
    """
    row = connection.execute(_SERVER).fetchone()
    in_recovery, licence, has_extension = row or (False, None, False)
    if in_recovery:
        raise UnsuitableServerError(f"{describe(conninfo)} is a read-only standby. Connect to the primary")
    if not has_extension:
        raise UnsuitableServerError(
            f"{describe(conninfo)} has no TimescaleDB. Run `ensure_database`, or CREATE EXTENSION as superuser"
        )
    return "apache" if licence == "apache" else "community"
