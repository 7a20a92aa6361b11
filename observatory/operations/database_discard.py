"""Removing the data that rollbacks of the database have set aside."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from observatory.backups.restore_lock import restore_lock
from observatory.files.atomic import remove
from observatory.nodes import Paths
from observatory.operations.database_exchange import COMMAND, continue_interrupted, end_agreed, records_of
from observatory.operations.delivery_journal import record_event
from observatory.operations.stack_outputs import required_outputs
from observatory.platforms import open_platform
from observatory.platforms.platform import check_supported
from observatory.progress import Reporter, silent, task
from observatory.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """Data that a rollback of the database has set aside.

    Attributes:
        id: of the rollback or the undo.
        kind: `rollback` or `undo`.
        at: when it began, in UTC.
        directory: of the data, on this machine.
        database_bytes: on the disk.
    """

    id: str
    kind: str
    at: datetime
    directory: Path
    database_bytes: int


def list_set_aside(workspace: Workspace) -> list[SetAside]:
    """Return the data that rollbacks of the database have set aside, oldest first.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack was never up, or its platform is not supported.
        DatabaseRollbackError: the record of a rollback is damaged.
    """
    platform = open_platform(workspace)
    check_supported(platform, COMMAND)
    required_outputs(platform, show_secrets=False)
    found = []
    records = records_of(workspace)
    coming_in = {each.incoming for each in records.all() if not each.finished}
    for record in records.all():
        directory = workspace.sandbox.host_path(f"{Paths().data}/{record.outgoing}")
        if record.finished and record.outgoing not in coming_in and directory.is_dir():
            size = sum(file.lstat().st_size for file in directory.rglob("*"))
            found.append(
                SetAside(id=record.id, kind=record.kind, at=record.at, directory=directory, database_bytes=size)
            )
    return found


def discard_set_aside(workspace: Workspace, *, report: Reporter = silent) -> list[SetAside]:
    """Remove the data that rollbacks of the database have set aside, and return what was removed.

    Afterwards the last rollback cannot be undone. A removal that was interrupted is finished by the next call.

    Raises: as `list_set_aside`, and RestoreRunningError: a rollback is under way.
    """
    platform = open_platform(workspace)
    check_supported(platform, COMMAND)
    with restore_lock(workspace.sandbox, "backup discard"):
        continue_interrupted(platform, report)
        end_agreed(platform)
        found = list_set_aside(workspace)
        records = records_of(workspace)
        for record in records.all():
            records.write(record.changed(discarded=True))
        for each in found:
            with task(report, f"remove {each.directory}"):
                remove(each.directory)
    if found:
        record_event(workspace, "database-discarded", rollbacks=[each.id for each in found])
    return found
