"""The copy of the journal of deliveries beside the local stack's backups."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from observatory.documents.journal import append, entries
from observatory.workspace import Workspace

ARCHIVE = "/srv/data/backups/audit"


def archive_journal(workspace: Workspace) -> None:
    """Append the journal's entries that the copy lacks; nothing happens where the stack has no data.

    Raises:
        OSError: the copy cannot be written.
    """
    sandbox = workspace.sandbox
    if not sandbox.home.is_dir():
        return
    with sandbox.open_append(f"{ARCHIVE}/{workspace.stack}.jsonl") as archive:
        fcntl.flock(archive, fcntl.LOCK_EX)
        archived = {entry.id for entry in entries(Path(f"/proc/self/fd/{archive.fileno()}"))}
        append(archive, [entry for entry in entries(workspace.journal) if entry.id not in archived])
        archive.flush()
        os.fsync(archive.fileno())
