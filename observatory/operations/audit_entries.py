"""The entries of a stack's audit: of the append-only table, and of this checkout's journal. Reads only."""

from __future__ import annotations

from observatory.documents.journal import Entry, entries
from observatory.operations.stack_outputs import required_outputs
from observatory.platforms import open_platform
from observatory.platforms.errors import StackNotUpError
from observatory.progress import Phase, Progress, Reporter, silent, tell
from observatory.workspace import Workspace


def list_audit(workspace: Workspace, *, report: Reporter = silent) -> list[Entry]:
    """Return every entry, oldest first: those of the audit table, and of this checkout's journal.

    Without the database there are those of this checkout's journal only, and `report` gets a warning.
    """
    from observatory.database.errors import DatabaseError  # noqa: PLC0415 - only with a database

    found = {entry.id: entry for entry in entries(workspace.journal)}
    try:
        found |= {entry.id: entry for entry in _rows(workspace)}
    except (DatabaseError, StackNotUpError) as error:
        tell(report, Progress(task=f"the report has this checkout's journal only: {error}", phase=Phase.WARNED))
    return sorted(found.values(), key=lambda entry: entry.at)


def _rows(workspace: Workspace) -> list[Entry]:
    from observatory.database.audit_table import read_entries  # noqa: PLC0415 - psycopg only where it is used

    platform = open_platform(workspace)
    rows = read_entries(platform.administrator(required_outputs(platform, show_secrets=False)))
    return [Entry(id=row.id, at=row.at, actor=row.actor, event=row.event, details=row.details) for row in rows]
