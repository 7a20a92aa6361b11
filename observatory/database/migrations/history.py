"""Compares the files with the ledger: returns what is pending, and refuses every contradiction. Reads only."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import psycopg

from observatory.database.errors import MigrationFileError, MigrationHistoryError
from observatory.database.migrations import ledger
from observatory.database.migrations.files import Edition, Migration, read_manifest, read_migrations, select_edition
from observatory.database.migrations.numbering import (
    FIRST_OWN,
    RENUMBER,
    OwnNumberError,
    is_own,
    is_product_directory,
    next_own_number,
    own_below_first,
    title_in,
    version_in,
    version_towards,
)

REPAIR = "observatory deploy database --repair"


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The result of comparing a database with the files.

    Attributes:
        version: highest migration that is completely applied; 0 is an empty database.
        pending: migrations to apply, in order; an interrupted file comes first.
        interrupted: rows of files that are not completely applied.
        files: all files with all variants; empty where none was read, because nothing is pending.
    """

    version: int
    pending: tuple[Migration, ...]
    interrupted: tuple[ledger.Entry, ...] = ()
    files: tuple[Migration, ...] = ()


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
        manifest = read_manifest(directory, edition)
        version = ledger.version_of(connection, manifest)
        if version is not None and target in {None, version} and not own_below_first(_names(manifest)):
            return History(version=version, pending=())
    return compare(connection, read_files(connection, directory), edition=edition, target=target, only=only)


def read_files(connection: psycopg.Connection, directory: Path) -> tuple[Migration, ...]:
    """Return every migration file of a directory.

    Raises:
        MigrationFileError: see `read_migrations`.
        MigrationHistoryError: own files with numbers of the product are applied to this database.
    """
    try:
        return read_migrations(directory)
    except OwnNumberError as error:
        rows = {entry.name for entry in ledger.read(connection)}
        if moves := [f"{old}.sql becomes {new}.sql" for old, new in error.renamed.items() if old in rows]:
            first = next(old for old in error.renamed if old in rows)
            raise MigrationHistoryError(
                f"{first}.sql:1:1: is applied to this database, but numbers 001 to {FIRST_OWN - 1} are for the "
                f"product's migrations. Move it: {RENUMBER} {first}.sql --reason TEXT ({', '.join(moves)})"
            ) from error
        raise


def _names(manifest: Sequence[str]) -> list[str]:
    return [line.partition(" ")[0].partition(".")[0] for line in manifest]


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
    _refuse_target(target, entries, migrations)
    last = migrations[-1].version if target is None and migrations else target or 0
    complete = {entry.version for entry in entries if entry.complete}
    interrupted = tuple(entry for entry in entries if not entry.complete)
    begun = {entry.version for entry in interrupted}
    pending = tuple(
        sorted(
            (each for each in migrations if each.version not in complete and each.version <= last),
            key=lambda each: (each.version not in begun, each.version),
        )
    )
    if only is not None:
        pending = _only(only, pending, migrations, last)
    return History(version=version, pending=pending, interrupted=interrupted, files=tuple(files))


def current_version(entries: Sequence[ledger.Entry]) -> int:
    """Return the highest version that is completely applied; 0 for none."""
    return max((entry.version for entry in entries if entry.complete), default=0)


def _refuse_edits(connection: psycopg.Connection, entries: Sequence[ledger.Entry], files: Sequence[Migration]) -> None:
    by_key = {(migration.version, migration.variant): migration for migration in files}
    names = {migration.name for migration in files}
    for entry in entries:
        migration = by_key.get((entry.version, entry.variant))
        if entry.name not in names and (message := _moved_message(entry, files, names)):
            raise MigrationHistoryError(message)
        if migration is None:
            raise MigrationHistoryError(_missing_message(entry))
        if migration.name != entry.name:
            raise MigrationHistoryError(
                f"{migration.place()}: was renamed after it was applied as {entry.name}. Restore that name, or record "
                f"the new one: {REPAIR} accept {migration.file} --reason TEXT"
            )
        # An interrupted file may change after its last finished statement; that is checked when it resumes.
        if entry.complete and migration.sha256 != entry.sha256:
            raise MigrationHistoryError(_edited_message(connection, entry, migration))


def renumbered(entry: ledger.Entry, files: Sequence[Migration]) -> Migration | None:
    """Return the file that has an entry's title and text, but another number."""
    same = (each for each in files if each.variant == entry.variant and each.sha256 == entry.sha256)
    return next((each for each in same if title_in(each.name) == title_in(entry.name)), None)


def _moved_message(entry: ledger.Entry, files: Sequence[Migration], names: Collection[str]) -> str | None:
    """Return the message for an applied file that has another number now, or whose number the product needs."""
    if moved := renumbered(entry, files):
        return (
            f"{moved.place()}: this database has it applied as {entry.name}. Move its row: {RENUMBER} {moved.file} "
            "--reason TEXT"
        )
    if is_product_directory(names) and is_own(entry.name) and entry.version < FIRST_OWN:
        new = f"{next_own_number(map(version_in, names)):03d}_{title_in(entry.name)}.sql"
        return (
            f"{entry.stem}.sql: was applied to this database on {entry.applied_at:%Y-%m-%d}, but the file is missing, "
            f"and its number is for the product's migrations. Restore it as {new}, then move its row: {RENUMBER} {new} "
            "--reason TEXT"
        )
    return None


def _missing_message(entry: ledger.Entry) -> str:
    forget = "" if entry.complete else f", or remove its row: {REPAIR} forget {entry.stem}.sql --reason TEXT"
    was = "was applied to this database" if entry.complete else "was interrupted on this database"
    return (
        f"{entry.stem}.sql: {was} on {entry.applied_at:%Y-%m-%d}, but the file is missing. Update the checkout if it "
        f"is older than the database, or restore the file{forget}"
    )


def _edited_message(connection: psycopg.Connection, entry: ledger.Entry, migration: Migration) -> str:
    place = migration.place(_first_difference(ledger.source(connection, entry.version), migration.sql))
    return (
        f"{place}: was edited after it was applied on {entry.applied_at:%Y-%m-%d} (the first difference is here). "
        "Restore the file, and write the change as a new migration; where only comments or white space changed, "
        f"{REPAIR} accept {migration.file} --reason TEXT"
    )


def _first_difference(before: str, after: str) -> int:
    pairs = enumerate(zip_longest(before, after))
    return next((offset for offset, (old, new) in pairs if old != new), 0)


def _refuse_out_of_order(entries: Sequence[ledger.Entry], migrations: Sequence[Migration]) -> None:
    """Refuse files below an applied one; each range has its own order, and an interrupted file may finish later."""
    complete = {entry.version for entry in entries if entry.complete}
    known = {entry.version for entry in entries}
    newest = {own: max((each for each in complete if (each >= FIRST_OWN) == own), default=0) for own in (False, True)}
    for migration in migrations:
        later = newest[migration.version >= FIRST_OWN]
        if migration.version < later and migration.version not in known:
            raise MigrationHistoryError(
                f"{migration.place()}: is not applied, but the later number {later:03d} is, so it would run out of "
                "order. Give it the next free number"
            )


def _refuse_target(target: int | None, entries: Sequence[ledger.Entry], migrations: Sequence[Migration]) -> None:
    if target is None:
        return
    version = version_towards([entry.name for entry in entries if entry.complete], target)
    if target < version:
        raise MigrationHistoryError(
            f"The database is at version {version}, above the target {target}, and migrations do not run "
            "backwards. Roll the database back, or raise the target"
        )
    if target and target not in {migration.version for migration in migrations}:
        last = migrations[-1].version if migrations else 0
        raise MigrationHistoryError(
            f"The target {target} has no file; the last migration is {last}. Add it, or lower the target"
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
