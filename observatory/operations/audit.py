"""The audit of a stack: copies of its journal in an append-only table, and beside the backups.

The journal's file is the first record, written as an event happens. A thread copies each entry to the table at once,
and delays nothing. At the end of a command the copies get the entries that they still lack, by their ids; entries that
could not be copied, also because the command was killed, are copied by the next command.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable

from observatory.documents.journal import Entry, FileJournal, entries
from observatory.errors import ObservatoryError
from observatory.platforms.errors import StackNotUpError
from observatory.platforms.platform import Platform

CLOSE_S = 5.0  # for the thread to end; connecting alone may take 3 s


class AuditCopier:
    """Copies entries to the table in a thread, as they are written; failures are left to `audit`."""

    def __init__(self, conninfo: Callable[[], str]) -> None:
        self._conninfo = conninfo
        self._entries: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def take(self, entry: Entry) -> None:
        """Accept an entry, without waiting for the database."""
        self._entries.put(entry)

    def close(self) -> None:
        """Wait for the entries to be copied, `CLOSE_S` at most."""
        self._entries.put(None)
        self._thread.join(CLOSE_S)

    def _copy(self) -> None:
        while entry := self._entries.get():
            try:
                _add(self._conninfo(), [entry])
            except ObservatoryError:
                return


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
    except (DatabaseError, StackNotUpError) as error:
        journal.record("not-audited", where="table", reason=str(error))


def _copy_to_table(journal: FileJournal, conninfo: str) -> None:
    """Add the journal's entries that the table lacks.

    Raises:
        DatabaseError: the database does not answer, or refused.
    """
    _add(conninfo, entries(journal.file))


def _add(conninfo: str, added: Iterable[Entry]) -> None:
    from observatory.database.audit_table import AuditEntry, add_entries  # noqa: PLC0415 - psycopg only where it is used

    rows = [
        AuditEntry(id=each.id, at=each.at, actor=each.actor, event=each.event, details=each.details) for each in added
    ]
    add_entries(conninfo, rows)
