"""Interrupted files: their statements, and the refusal of files that cannot continue. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import psycopg

from observatory.database.errors import MigrationFileError, MigrationHistoryError
from observatory.database.migrations import ledger
from observatory.database.migrations.files import Migration
from observatory.database.migrations.statements import Script, Statement, parse


def refuse_unresumable(
    connection: psycopg.Connection, scripts: Iterable[Script], interrupted: Sequence[ledger.Entry]
) -> None:
    """Refuse interrupted files that cannot continue, before anything is changed.

    Args:
        connection: to the database.
        scripts: the pending files.
        interrupted: rows of the interrupted ones.

    Raises:
        MigrationHistoryError: a finished statement was changed, or the file no longer runs statement by statement.
    """
    entries = {entry.version: entry for entry in interrupted}
    for script in scripts:
        entry = entries.get(script.migration.version)
        progress = ledger.progress(connection, script.migration.version) if entry else None
        if progress is None:
            continue
        if script.transactional:
            raise MigrationHistoryError(_transactional_message(script, progress))
        refuse_changed_statements(script, progress)


def refuse_changed_statements(script: Script, progress: ledger.Progress) -> None:
    """Refuse a file whose finished statements were changed.

    Raises:
        MigrationHistoryError: names the first of them.
    """
    done = [statement.sha256 for statement in script.statements[: progress.done]]
    if len(done) == progress.done and ledger.statements_digest(done) == progress.digest:
        return
    before = [statement.sha256 for statement in statements_before(script.migration, progress)[: progress.done]]
    number = next((at for at, sha256 in enumerate(before) if done[at : at + 1] != [sha256]), len(done))
    place = script.migration.place(script.statements[number].offset if number < len(script.statements) else 0)
    raise MigrationHistoryError(
        f"{place}: statement {number + 1} was changed after it ran. The file was interrupted after {progress.done} "
        f"statements: restore those {progress.done}; you may change the later ones"
    )


def begun_statement(migration: Migration, progress: ledger.Progress) -> Statement | None:
    """Return the statement that was begun outside a transaction and not finished, as it was then."""
    begun = statements_before(migration, progress)[progress.done : progress.done + 1] if progress.running else ()
    return next((statement for statement in begun if statement.sha256 == progress.running), None)


def statements_before(migration: Migration, progress: ledger.Progress) -> tuple[Statement, ...]:
    """Return the statements of the file as it was when its row was last written; none where it cannot be parsed."""
    try:
        return parse(migration._replace(sql=progress.source)).statements
    except MigrationFileError:
        return ()


def _transactional_message(script: Script, progress: ledger.Progress) -> str:
    migration = script.migration
    return (
        f"{migration.place()}: was interrupted (finished statements: {progress.done}) while its header was "
        "'-- transaction: false'. Restore that header, or remove the row: observatory deploy database --repair forget "
        f"{migration.file} --reason TEXT"
    )
