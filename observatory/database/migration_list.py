"""Lists the migrations of a database: what was applied, when and by whom, and what is pending. Reads only.

Reports a contradiction of files and ledger as text, because the list is needed most where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import psycopg

from observatory.database.errors import MigrationFileError, MigrationHistoryError
from observatory.database.migration_session import session
from observatory.database.migrations import ledger
from observatory.database.migrations.files import Edition, Migration, read_repeatables, select_edition
from observatory.database.migrations.history import compare, current_version, read_files
from observatory.database.migrations.repeatable import pending_repeatables, read_entries, removed_files

State = Literal["applied", "baselined", "interrupted", "pending", "changed", "removed"]

_READ_ONLY: Mapping[str, str] = {"default_transaction_read_only": "on"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedMigration:
    """One migration of the list.

    Attributes:
        version: its number; 0 is a repeatable migration.
        file: its name with edition and extension.
        state: `baselined`: only recorded, because other tools had made its objects; `interrupted`: some of its
            statements ran, and the next deployment resumes it. Of repeatable ones, `changed`: the next deployment
            applies it again; `removed`: it is no longer in the directory, and what it made stays.
        applied_at: when its last statement finished; None: it is pending.
        applied_by: the actor of that deployment.
        deployment_id: of that deployment.
        duration_ms: time spent in its statements.
        backup_label: the backup that was made right before; None: none was.
    """

    version: int
    file: str
    state: State
    applied_at: datetime | None = None
    applied_by: str | None = None
    deployment_id: str | None = None
    duration_ms: int | None = None
    backup_label: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationList:
    """The migrations of a database.

    Attributes:
        version: of the schema; 0 is an empty database.
        edition: of the server's TimescaleDB.
        migrations: by version, then the repeatable ones by name.
        problem: why a deployment would be refused, because files and ledger contradict each other; None: they agree.
    """

    version: int
    edition: Edition
    migrations: tuple[ListedMigration, ...]
    problem: str | None


def list_migrations(conninfo: str, *, migrations: Path) -> MigrationList:
    """Return the applied and pending migrations of a database.

    Args:
        conninfo: as the role that owns the schema.
        migrations: directory of the files.

    Raises:
        UnreachableError: the connection failed or broke.
        UnsuitableServerError: a standby, or no TimescaleDB.
    """
    with session(conninfo, purpose="list migrations", settings=_READ_ONLY) as (connection, edition):
        entries = ledger.read(connection)
        files, problem = _files(connection, migrations, edition)
        repeated = () if problem and not files else tuple(_repeatable(connection, migrations, edition))
    listed = [*map(_applied, entries), *_pending(entries, files)]
    return MigrationList(
        version=current_version(entries),
        edition=edition,
        migrations=(*sorted(listed, key=lambda each: each.version), *repeated),
        problem=problem,
    )


def _files(connection: psycopg.Connection, directory: Path, edition: Edition) -> tuple[Sequence[Migration], str | None]:
    """Return the files of the edition, and why they do not fit the ledger."""
    try:
        files = read_files(connection, directory)
    except (MigrationFileError, MigrationHistoryError) as error:
        return (), str(error)
    try:
        compare(connection, files, edition=edition)
    except MigrationHistoryError as error:
        return select_edition(files, edition), str(error)
    return select_edition(files, edition), None


def _applied(entry: ledger.Entry) -> ListedMigration:
    return ListedMigration(
        version=entry.version,
        file=f"{entry.stem}.sql",
        state="baselined" if entry.baselined else "applied" if entry.complete else "interrupted",
        applied_at=entry.applied_at,
        applied_by=entry.applied_by,
        deployment_id=entry.deployment_id,
        duration_ms=entry.duration_ms,
        backup_label=entry.backup_label,
    )


def _pending(entries: Sequence[ledger.Entry], files: Sequence[Migration]) -> Iterator[ListedMigration]:
    recorded = {entry.version for entry in entries}
    for migration in files:
        if migration.version not in recorded:
            yield ListedMigration(version=migration.version, file=migration.file, state="pending")


def _repeatable(connection: psycopg.Connection, directory: Path, edition: Edition) -> Iterator[ListedMigration]:
    files, entries = read_repeatables(directory, edition), read_entries(connection)
    pending = {migration.name for migration in pending_repeatables(files, entries)}
    removed = set(removed_files(files, entries))
    for entry in entries:
        state: State = "removed" if entry.file in removed else "changed" if entry.name in pending else "applied"
        yield ListedMigration(
            version=0,
            file=entry.file,
            state=state,
            applied_at=entry.applied_at,
            applied_by=entry.applied_by,
            deployment_id=entry.deployment_id,
            duration_ms=entry.duration_ms,
            backup_label=entry.backup_label,
        )
    applied = {entry.name for entry in entries}
    for migration in files:
        if migration.name not in applied:
            yield ListedMigration(version=0, file=migration.file, state="pending")
