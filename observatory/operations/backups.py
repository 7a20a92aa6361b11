"""Making backups of a stack's database, and listing them."""

from __future__ import annotations

from observatory.backups import pgbackrest as backups
from observatory.backups.pgbackrest import Backup, BackupType
from observatory.operations.bootstrap import OperationError
from observatory.progress import Reporter, silent, task
from observatory.workspace import Workspace


def create_backup(
    workspace: Workspace, kind: BackupType = BackupType.INCREMENTAL, *, report: Reporter = silent
) -> Backup:
    """Make a backup of the stack's database and return it.

    Raises:
        OperationError: the stack is not up.
        BackupRunningError: another backup is at work.
        BackupError: it failed; the last good backups stay.
    """
    sandbox = workspace.sandbox
    if not sandbox.alive():
        raise OperationError(f"the stack {workspace.stack!r} does not run: start it by `observatory up` first")
    with task(report, f"{kind} backup"):
        return backups.create_backup(sandbox, kind)


def list_backups(workspace: Workspace) -> list[Backup]:
    """Return the finished backups of the stack's database, the oldest first; the stack need not be up.

    Raises:
        OperationError: the stack has never been up.
        BackupError: the repository does not answer.
    """
    sandbox = workspace.sandbox
    if not sandbox.home.is_dir():
        raise OperationError(f"the stack {workspace.stack!r} does not exist yet; `observatory up` makes it")
    return backups.list_backups(sandbox)
