"""Compares the files with the ledger: returns what is pending, and refuses every contradiction. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import psycopg

from observatory.database.errors import MigrationFileError, MigrationHistoryError
from observatory.database.migrations import ledger
from observatory.database.migrations.files import Edition, Migration, read_manifest, read_migrations, select_edition


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The result of comparing a database with the files.

    Attributes:
        version: highest migration that is completely applied; 0 is an empty database.
        pending: migrations to apply, in order; an interrupted file comes first.
    """

    version: int
    pending: tuple[Migration, ...]


def read_history(
    connection: psycopg.Connection,
    *,
    directory: Path,
    edition: Edition,
    target: int | None = None,
    only: str | None = None,
) -> History:
    """Compare a database's ledger with a directory; fast where both are equal.

    Raises:
        MigrationFileError: an unusable file, or the file `only` does not exist.
        MigrationHistoryError: see `compare`.
    """
    if only is None:
        version = ledger.version_of(connection, read_manifest(directory, edition))
        if version is not None and target in {None, version}:
            return History(version=version, pending=())
    return compare(connection, read_migrations(directory), edition=edition, target=target, only=only)


def compare(
    connection: psycopg.Connection,
    files: Sequence[Migration],
    *,
    edition: Edition,
    target: int | None = None,
    only: str | None = None,
) -> History:
    """Compare a database's ledger with the files.

    Args:
        connection: to the database.
        files: all migrations with all variants.
        edition: of the server.
        target: highest version to apply; None is all.
        only: name of the one file to apply; None is all.

    Raises:
        MigrationFileError: the file `only` does not exist.
        MigrationHistoryError: an applied file is missing, renamed or edited; a file would run out of order; the target
            does not exist or is below the database's version; or earlier files than `only` are not applied.
    """
    migrations = select_edition(files, edition)
    entries = ledger.read(connection)
    _refuse_edits(connection, entries, files)
    version = current_version(entries)
    _refuse_out_of_order(entries, migrations)
    _refuse_target(target, version, migrations)
    last = len(migrations) if target is None else target
    pending = migrations[version:last]
    return History(version=version, pending=pending if only is None else _only(only, pending, migrations, last))


def current_version(entries: Sequence[ledger.Entry]) -> int:
    """Return the highest version that is completely applied; 0 for none."""
    return max((entry.version for entry in entries if entry.complete), default=0)


def _refuse_edits(connection: psycopg.Connection, entries: Sequence[ledger.Entry], files: Sequence[Migration]) -> None:
    by_key = {(migration.version, migration.variant): migration for migration in files}
    for entry in entries:
        migration = by_key.get((entry.version, entry.variant))
        if migration is None:
            raise MigrationHistoryError(_missing_message(entry))
        if migration.name != entry.name:
            raise MigrationHistoryError(
                f"{migration.place()}: was renamed after it was applied as {entry.name}. Restore that name"
            )
        # An interrupted file may change after its last finished statement; that is checked when it resumes.
        if entry.complete and migration.sha256 != entry.sha256:
            raise MigrationHistoryError(_edited_message(connection, entry, migration))


def _missing_message(entry: ledger.Entry) -> str:
    return (
        f"{entry.stem}.sql: was applied to this database on {entry.applied_at:%Y-%m-%d}, but the file is missing. "
        "Update the checkout if it is older than the database, or restore the file"
    )


def _edited_message(connection: psycopg.Connection, entry: ledger.Entry, migration: Migration) -> str:
    place = migration.place(_first_difference(ledger.source(connection, entry.version), migration.sql))
    return (
        f"{place}: was edited after it was applied on {entry.applied_at:%Y-%m-%d} (the first difference is here). "
        "Restore the file, and write the change as a new migration"
    )


def _first_difference(before: str, after: str) -> int:
    pairs = enumerate(zip_longest(before, after))
    return next((offset for offset, (old, new) in pairs if old != new), 0)


def _refuse_out_of_order(entries: Sequence[ledger.Entry], migrations: Sequence[Migration]) -> None:
    applied = {entry.version for entry in entries if entry.complete}
    newest = max(applied, default=0)
    for migration in migrations:
        if migration.version < newest and migration.version not in applied:
            raise MigrationHistoryError(
                f"{migration.place()}: is not applied, but the later number {newest:03d} is, so it would run out of "
                "order. Give it the next free number"
            )


def _refuse_target(target: int | None, version: int, migrations: Sequence[Migration]) -> None:
    if target is None:
        return
    if target < version:
        raise MigrationHistoryError(
            f"The database is at version {version}, above the target {target}, and migrations do not run "
            "backwards. Roll the database back, or raise the target"
        )
    if target > len(migrations):
        raise MigrationHistoryError(
            f"The target {target} has no file; the last migration is {len(migrations)}. Add it, or lower the target"
        )


def _only(name: str, pending: Sequence[Migration], migrations: Sequence[Migration], last: int) -> tuple[Migration, ...]:
    """Return the pending migration with a file's name, with or without its edition; none when it is applied."""
    selected = next((each for each in migrations if name in {each.file, f"{each.name}.sql"}), None)
    if selected is None:
        names = ", ".join(f"{each.name}.sql" for each in pending) or "none"
        raise MigrationFileError(f"{name}: this edition has no such migration. Name a pending one: {names}")
    earlier = [each.file for each in pending if each.version < selected.version]
    if selected.version > last:
        raise MigrationHistoryError(
            f"{selected.place()}: is above the target {last}, which a rollback of the database sets. Raise the target"
        )
    if earlier:
        raise MigrationHistoryError(
            f"{selected.place()}: {', '.join(earlier)} must be applied before it. Apply them first, or run "
            "without naming a file"
        )
    return tuple(each for each in pending if each is selected)
