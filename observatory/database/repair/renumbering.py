"""Moves an applied own migration to another number: finds its row and its file, and renames the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from observatory.database.errors import MigrationFileError, RepairRefusedError
from observatory.database.excerpts import excerpt
from observatory.database.migrations import ledger
from observatory.database.migrations.files import EDITIONS, Migration
from observatory.database.migrations.history import renumbered
from observatory.database.migrations.numbering import (
    FIRST_OWN,
    is_own,
    is_product_directory,
    next_own_number,
    own_below_first,
    title_in,
    version_in,
)
from observatory.database.migrations.statements import phase_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """A row that gets another number.

    Attributes:
        entry: the row.
        name: its new name, `500_mine`.
        renames: files to rename, each with its new path; none where the file has its new name already.
        consider: what follows from it, a line each.
    """

    entry: ledger.Entry
    name: str
    renames: tuple[tuple[Path, Path], ...]
    consider: tuple[str, ...]

    @property
    def version(self) -> int:
        """The new number."""
        return version_in(self.name)


def find_move(entries: Sequence[ledger.Entry], files: Sequence[Migration], file: str) -> Move:
    """Return the move of a file, which is named by its old name or, where it is renamed already, by its new one.

    Raises:
        RepairRefusedError: no row fits, the row is the product's, or its new number is taken.
    """
    names = {each.name for each in files}
    present = next((each for each in files if file in {each.file, f"{each.name}.sql", each.name}), None)
    entry = next((each for each in entries if file.removesuffix(".sql") in {each.stem, each.name}), None)
    if entry and is_product_directory(names) and not is_own(entry.name):
        raise RepairRefusedError(f"{entry.stem}.sql: is a migration of the product; only own ones can be renumbered")
    if entry and present:
        return _move_with_file(entry, present, entries, files)
    if entry:
        present = renumbered(entry, files)
        if present is None:
            raise RepairRefusedError(
                f"{entry.stem}.sql: the file is missing, and no file has its title and text under another number. "
                "Restore it"
            )
    elif present:
        entry = _row_of_renamed(present, entries, names)
    else:
        raise RepairRefusedError(f"{excerpt(file)}: neither the ledger nor the directory has a file of this name")
    _check_number(present, entry, entries, names)
    return Move(entry=entry, name=present.name, renames=(), consider=tuple(_consequences(present)))


def rename_files(move: Move, change_row: Callable[[], None]) -> None:
    """Change the row, then rename the files; a file that cannot be renamed gets its name back.

    Raises:
        MigrationFileError: a file cannot be renamed; the caller rolls the row back.
    """
    change_row()
    done: list[tuple[Path, Path]] = []
    try:
        for old, new in move.renames:
            old.rename(new)
            done.append((old, new))
    except OSError as error:
        for old, new in done:
            new.rename(old)
        raise MigrationFileError(
            f"{error.filename}: cannot be renamed: {error.strerror}. Nothing was changed. Make the directory writable, "
            "or rename the file yourself and name it by its new name"
        ) from error


def _move_with_file(
    entry: ledger.Entry, present: Migration, entries: Sequence[ledger.Entry], files: Sequence[Migration]
) -> Move:
    """Return the move of a row whose file still has its old name: to the next own number."""
    wrong = own_below_first(each.name for each in files)
    if entry.name not in wrong:
        raise RepairRefusedError(
            f"{entry.stem}.sql: row and file have the same name, and the number is allowed. To move it, rename the "
            "file first, then name it by its new name"
        )
    applied = {each.name for each in entries}
    first = next(name for name in wrong if name in applied)
    if first != entry.name:
        raise RepairRefusedError(f"{entry.stem}.sql: {first}.sql was applied before it. Move that one first")
    number = next_own_number([*(each.version for each in entries), *(each.version for each in files)])
    name = f"{number:03d}_{title_in(entry.name)}"
    endings = [".sql", *(f".{edition}.sql" for edition in EDITIONS)]
    paths = [(present.directory / f"{entry.name}{end}", present.directory / f"{name}{end}") for end in endings]
    renames = tuple((old, new) for old, new in paths if old.exists())
    listed = (f"the file {old.name} is renamed to {new.name}; commit that" for old, new in renames)
    return Move(entry=entry, name=name, renames=renames, consider=(*listed, *_consequences(present)))


def _row_of_renamed(present: Migration, entries: Sequence[ledger.Entry], names: set[str]) -> ledger.Entry:
    """Return the row of a file that has a new number."""
    same_title = [each for each in entries if title_in(each.name) == title_in(present.name) and each.name not in names]
    found = next((each for each in same_title if renumbered(each, [present])), None)
    if found:
        return found
    if same_title:
        raise RepairRefusedError(
            f"{present.file}: its text is not that of {same_title[0].stem}.sql as it was applied. Restore the text, "
            "then run again; --repair accept takes an edit afterwards"
        )
    raise RepairRefusedError(
        f"{present.file}: no applied file that is missing has this title, so no row can be moved. Deploy it"
    )


def _check_number(present: Migration, entry: ledger.Entry, entries: Sequence[ledger.Entry], names: set[str]) -> None:
    if is_product_directory(names) and present.version < FIRST_OWN:
        raise RepairRefusedError(
            f"{present.file}: numbers 001 to {FIRST_OWN - 1} are for the product's migrations. Give it a number from "
            f"{FIRST_OWN} on"
        )
    taken = next((each for each in entries if each.version == present.version and each is not entry), None)
    if taken:
        raise RepairRefusedError(
            f"{present.file}: number {present.version:03d} is in the ledger as {taken.name}. Move that one first, or "
            "give the file the next free number"
        )


def _consequences(present: Migration) -> Iterator[str]:
    if phase_of(present.sql) == "contract":
        yield (
            "the file removes something: a release can only run if its manifest's schema_max is at least the new number"
        )
