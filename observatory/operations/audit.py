"""The audit of a stack: copies of its journal in an append-only table, and beside the backups.

The journal's file is the first record. At the end of a command the copies get the entries that they lack, by their ids;
entries that could not be copied are copied by the next command.
"""

from __future__ import annotations

from collections.abc import Callable

from observatory.delivery.errors import DeliveryRefusedError
from observatory.documents.journal import FileJournal, entries
from observatory.platforms.platform import Platform


def audit(platform: Platform, journal: FileJournal, conninfo: Callable[[], str] | None) -> None:
    """Copy the journal beside the backups and, with `conninfo`, to the table; a failure is recorded and not raised."""
    try:
        platform.archive_journal()
    except OSError as error:
        journal.record("not-audited", where="store", reason=str(error))
    if conninfo is None:
        return
    from observatory.database.errors import DatabaseError  # noqa: PLC0415 - only with a database

    try:
        _copy_to_table(journal, conninfo())
    except (DatabaseError, DeliveryRefusedError) as error:
        journal.record("not-audited", where="table", reason=str(error))


def _copy_to_table(journal: FileJournal, conninfo: str) -> None:
    """Add the journal's entries that the table lacks.

    Raises:
        DatabaseError: the database does not answer, or refused.
    """
    from observatory.database.audit_table import AuditEntry, add_entries  # noqa: PLC0415 - psycopg only where it is used

    rows = (
        AuditEntry(id=each.id, at=each.at, actor=each.actor, event=each.event, details=each.details)
        for each in entries(journal.file)
    )
    add_entries(conninfo, rows)
