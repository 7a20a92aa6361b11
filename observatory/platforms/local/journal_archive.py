"""The copies of the journal of deliveries beside the local stack's backups: one in each repository."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

from observatory.backups.repository_places import is_there, place_of
from observatory.documents.journal import append, entries
from observatory.nodes.pgbackrest import REPOSITORIES
from observatory.runtime import SandboxError
from observatory.workspace import Workspace


def archive_journal(workspace: Workspace) -> None:
    """Append the journal's entries that a copy lacks to it. A repository that is not there gets them when it is.

    Raises:
        OSError: a copy cannot be written; the other one is.
    """
    sandbox, failures = workspace.sandbox, list[str]()
    for number in REPOSITORIES:
        if not is_there(sandbox, number):
            continue
        try:
            with sandbox.open_append(f"{place_of(sandbox, number)}/audit/{workspace.stack}.jsonl") as copy:
                _complete(copy, workspace.journal)
        except (OSError, SandboxError) as error:
            failures.append(f"repository {number}: {error}")
    if failures:
        raise OSError("; ".join(failures))


def _complete(copy: BinaryIO, journal: Path) -> None:
    fcntl.flock(copy, fcntl.LOCK_EX)
    copied = {entry.id for entry in entries(Path(f"/proc/self/fd/{copy.fileno()}"))}
    append(copy, [entry for entry in entries(journal) if entry.id not in copied])
    copy.flush()
    os.fsync(copy.fileno())
