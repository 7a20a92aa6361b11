"""The rules of each repair: which row it changes, when it is refused, and what to consider afterwards. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import pglast
import psycopg

from observatory.database.errors import RepairRefusedError
from observatory.database.excerpts import excerpt
from observatory.database.migrations import ledger
from observatory.database.migrations.files import Edition, Migration, read_unchecked
from observatory.database.migrations.non_transactional import finish_interrupted, traits_of
from observatory.database.migrations.numbering import FIRST_OWN, is_own, is_product_directory, own_below_first
from observatory.database.migrations.resuming import begun_statement, statements_before
from observatory.database.migrations.statements import Statement, parse
from observatory.database.repair import rows
from observatory.database.repair.renumbering import find_move, rename_files

RepairAction = Literal["forget", "accept", "applied", "renumber"]
"""`forget` removes the row of an interrupted file; `accept` takes the text of a file that was edited after it was
applied; `applied` records a file that was run by hand; `renumber` moves an applied own file to another number."""

_SHOWN = 5
_BY_HAND = "applied by "  # start of the note of a row that the action `applied` wrote


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """What a repair changes, or would change.

    Attributes:
        action: see `RepairAction`.
        file: the migration's file.
        before: the ledger's row before; None: there is none.
        after: the row afterwards; None: it is removed.
        consider: what the repair does not change or check, a line each.
    """

    action: RepairAction
    file: str
    before: str | None
    after: str | None
    consider: tuple[str, ...]


class Prepared(NamedTuple):
    """A repair, and the functions that perform it: before the transaction, and inside it."""

    repair: Repair
    before: Callable[[psycopg.Connection], object]
    change: Callable[[psycopg.Connection, ledger.Author, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """The ledger and the files that a repair is checked against.

    Attributes:
        connection: to the database.
        edition: of the server.
        entries: the ledger's rows.
        files: of the edition, by number; their numbers may contradict each other.
    """

    connection: psycopg.Connection
    edition: Edition
    entries: tuple[ledger.Entry, ...]
    files: tuple[Migration, ...]

    @classmethod
    def read(cls, connection: psycopg.Connection, migrations: Path, edition: Edition) -> Situation:
        """Read ledger and files."""
        files = tuple(each for each in read_unchecked(migrations) if each.variant in {None, edition})
        return cls(connection=connection, edition=edition, entries=ledger.read(connection), files=files)

    def row_of(self, file: str) -> ledger.Entry | None:
        """Return the row of a file's name, with or without its edition."""
        stem = file.removesuffix(".sql")
        return next((entry for entry in self.entries if stem in {entry.stem, entry.name}), None)

    def file_of(self, file: str) -> Migration | None:
        """Return the file of a name, with or without its edition."""
        return next((each for each in self.files if file in {each.file, f"{each.name}.sql", each.name}), None)

    def existing(self, file: str) -> Migration:
        """Return the file of a name; raises RepairRefusedError."""
        found = self.file_of(file)
        if found is None:
            raise RepairRefusedError(
                f"{excerpt(file)}: the directory has no such file for the {self.edition} edition. Name one that exists"
            )
        return found


def prepare(situation: Situation, action: RepairAction, file: str) -> Prepared:
    """Return the repair of a file.

    Raises:
        RepairRefusedError: the action does not fit the state of the ledger or of the files.
        MigrationFileError: the file is unusable.
    """
    return _PREPARE[action](situation, file)


def _forget(situation: Situation, file: str) -> Prepared:
    entry = situation.row_of(file)
    if entry is None:
        interrupted = ", ".join(f"{each.stem}.sql" for each in situation.entries if not each.complete) or "none"
        raise RepairRefusedError(
            f"{excerpt(file)}: the ledger has no row of this name, so there is nothing to forget. Interrupted files: "
            f"{interrupted}"
        )
    if entry.complete and not (entry.note or "").startswith(_BY_HAND):
        raise RepairRefusedError(
            f"{entry.stem}.sql: is completely applied, and its row is the record of what the database has. forget "
            "removes the rows of interrupted files, and of files that --repair applied recorded. To undo the file, "
            "write a new migration"
        )
    progress = ledger.progress(situation.connection, entry.version)
    written = _as_written(entry, progress.source if progress else "")
    begun = begun_statement(written, progress) if progress else None
    return Prepared(
        Repair(
            action="forget",
            file=f"{entry.stem}.sql",
            before=_described(entry),
            after=None,
            consider=tuple(_left_behind(written, progress, begun)) if progress and not entry.complete else (),
        ),
        lambda connection: begun and finish_interrupted(connection, traits_of(begun), same_statement=False),
        lambda connection, _author, _note: rows.remove(connection, entry),
    )


def _left_behind(written: Migration, progress: ledger.Progress, begun: Statement | None) -> Iterator[str]:
    """Yield what an interrupted file leaves in the database."""
    finished = statements_before(written, progress)[: progress.done]
    for number, statement in enumerate(finished[:_SHOWN], start=1):
        yield f"statement {number} is done and stays in effect: {excerpt(statement.sql, 80)}"
    if progress.done > _SHOWN:
        yield f"{progress.done - _SHOWN} more statements are done and stay in effect"
    if begun and traits_of(begun).builds_index:
        yield f"an invalid index that this statement left is dropped: {excerpt(begun.sql, 80)}"
    elif progress.running:
        text = excerpt(begun.sql, 80) if begun else "its text is not known"
        yield f"statement {progress.done + 1} was begun and may have taken effect: {text}"
    if progress.done or progress.running:
        yield "if the file stays, it is pending, and all of its statements run again"


def _accept(situation: Situation, file: str) -> Prepared:
    migration = situation.existing(file)
    entry = situation.row_of(file) or next(
        (each for each in situation.entries if (each.version, each.variant) == (migration.version, migration.variant)),
        None,
    )
    if entry is None:
        raise RepairRefusedError(
            f"{migration.file}: the ledger has no row of this file, so there is no edit to accept. Deploy it"
        )
    product = is_product_directory({each.name for each in situation.files})
    if entry.name != migration.name and product and is_own(entry.name) != is_own(migration.name):
        raise RepairRefusedError(
            f"{migration.file}: number {entry.version:03d} is applied as {entry.name}, which is another file. Move "
            f"that one: --repair renumber {entry.stem}.sql"
        )
    script, progress = parse(migration), ledger.progress(situation.connection, entry.version)
    hashes = [statement.sha256 for statement in script.statements]
    done = len(hashes) if entry.complete else entry.statements_done
    same_text = entry.complete and entry.sha256 == migration.sha256
    same_progress = not entry.complete and progress and ledger.statements_digest(hashes[:done]) == progress.digest
    if entry.name == migration.name and (same_text or same_progress):
        state = "as it was applied" if entry.complete else "interrupted, and its finished statements are as they ran"
        raise RepairRefusedError(f"{migration.file}: is {state}, so there is nothing to accept. Deploy")
    if done > len(hashes):
        raise RepairRefusedError(
            f"{migration.file}: {done} statements ran, but the file has {len(hashes)}. Restore them, or use --repair "
            "forget"
        )
    ran = statements_before(migration, progress)[: progress.done] if progress else ()
    return Prepared(
        Repair(
            action="accept",
            file=migration.file,
            before=_described(entry),
            after=_row(migration, done, len(hashes)),
            consider=tuple(_changes(migration, ran, script.statements[:done])),
        ),
        _nothing,
        lambda connection, _author, note: rows.replace(
            connection, entry, migration, hashes=hashes, done=done, note=note
        ),
    )


def _changes(migration: Migration, ran: Sequence[Statement], present: Sequence[Statement]) -> Iterator[str]:
    """Yield each statement that is not the one that ran; they may differ in white space and comments."""
    changed = [
        number
        for number, statement in enumerate(present)
        if number >= len(ran) or not _equal(ran[number].sql, statement.sql)
    ]
    for number in changed[:_SHOWN]:
        place = migration.place(present[number].offset)
        yield f"{place}: statement {number + 1} is not the one that ran, and it does not run now"
    if len(changed) > _SHOWN:
        yield f"{len(changed) - _SHOWN} more statements are not those that ran, and they do not run now"
    if len(ran) > len(present):
        yield f"{len(ran) - len(present)} statements that ran are not in the file any more; they stay in effect"
    if not changed and len(ran) <= len(present):
        yield "only names, comments or white space differ from what ran"


def _equal(before: str, after: str) -> bool:
    if before == after:
        return True
    return bool(pglast.parse_sql(before) == pglast.parse_sql(after))


def _applied(situation: Situation, file: str) -> Prepared:
    migration = situation.existing(file)
    if migration.name in own_below_first(each.name for each in situation.files):
        raise RepairRefusedError(
            f"{migration.file}: numbers 001 to {FIRST_OWN - 1} are for the product's migrations. Rename the file, own "
            f"numbers start at {FIRST_OWN}"
        )
    entry = next((each for each in situation.entries if each.version == migration.version), None)
    if entry and (entry.complete or entry.name != migration.name):
        named = "" if entry.name == migration.name else f" as {entry.name}"
        raise RepairRefusedError(
            f"{migration.file}: number {entry.version:03d} is in the ledger{named} since {entry.applied_at:%Y-%m-%d} "
            f"({entry.statements_done} of {entry.statements_total} statements), so it cannot be recorded"
        )
    complete = {each.version for each in situation.entries if each.complete}
    for earlier in situation.files:
        same_range = (earlier.version >= FIRST_OWN) == (migration.version >= FIRST_OWN)
        if same_range and earlier.version < migration.version and earlier.version not in complete:
            raise RepairRefusedError(
                f"{migration.file}: {earlier.file} comes before it and is not applied. Deploy that one first"
            )
    hashes = [statement.sha256 for statement in parse(migration).statements]
    return Prepared(
        Repair(
            action="applied",
            file=migration.file,
            before=_described(entry) if entry else None,
            after=_row(migration, len(hashes), len(hashes)),
            consider=("its statements do not run. `deploy database --verify-only` compares the database with them",),
        ),
        _nothing,
        lambda connection, author, note: _record(connection, migration, entry, author, hashes=hashes, note=note),
    )


def _record(
    connection: psycopg.Connection,
    migration: Migration,
    entry: ledger.Entry | None,
    author: ledger.Author,
    *,
    hashes: Sequence[str],
    note: str,
) -> None:
    if entry:
        rows.replace(connection, entry, migration, hashes=hashes, done=len(hashes), note=note)
        return
    holder, total = connection.info.backend_pid, len(hashes)
    ledger.insert(connection, migration, author, hashes=hashes, total=total, duration_ms=0, holder=holder, note=note)


def _renumber(situation: Situation, file: str) -> Prepared:
    move = find_move(situation.entries, situation.files, file)
    return Prepared(
        Repair(
            action="renumber",
            file=f"{move.entry.stem}.sql",
            before=_described(move.entry),
            after=f"{move.name}: {_progress(move.entry.statements_done, move.entry.statements_total)}",
            consider=move.consider,
        ),
        _nothing,
        lambda connection, _author, note: rename_files(
            move, lambda: rows.move(connection, move.entry, move.name, move.version, note=note)
        ),
    )


def _nothing(_connection: psycopg.Connection) -> None:
    """Do nothing before the transaction."""


def _as_written(entry: ledger.Entry, source: str) -> Migration:
    return Migration(entry.version, entry.name, entry.variant, Path(), entry.sha256, source)


def _described(entry: ledger.Entry) -> str:
    progress = _progress(entry.statements_done, entry.statements_total)
    return f"{entry.stem}: {progress}, {entry.applied_at:%Y-%m-%d}, by {entry.applied_by}, sha256 {entry.sha256[:12]}"


def _row(migration: Migration, done: int, total: int) -> str:
    return f"{migration.file.removesuffix('.sql')}: {_progress(done, total)}, sha256 {migration.sha256[:12]}"


def _progress(done: int, total: int) -> str:
    return f"{done} of {total} statements"


_PREPARE: dict[RepairAction, Callable[[Situation, str], Prepared]] = dict(
    zip(get_args(RepairAction), (_forget, _accept, _applied, _renumber), strict=True)
)
