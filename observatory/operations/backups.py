"""Creating and listing backups of a stack's database."""

from __future__ import annotations

from observatory.backups import pgbackrest
from observatory.backups.pgbackrest import Backup, BackupType
from observatory.platforms import open_platform
from observatory.platforms.errors import OperationError
from observatory.platforms.platform import check_supported
from observatory.progress import Reporter, silent, task
from observatory.workspace import Workspace


def create_backup(
    workspace: Workspace, kind: BackupType = BackupType.INCREMENTAL, *, report: Reporter = silent
) -> Backup:
    """Create a backup of the stack's database and return it.

    Raises:
        OperationError: the stack is not up, or its platform is not supported.
        BackupRunningError: another backup is running.
        BackupError: it failed; earlier backups are kept.
    """
    check_supported(open_platform(workspace), "backup")
    if not workspace.sandbox.alive():
        raise OperationError(f"the stack {workspace.stack!r} is not running: run `observatory up` first")
    with task(report, f"{kind} backup"):
        return pgbackrest.create_backup(workspace.sandbox, kind)


def list_backups(workspace: Workspace) -> list[Backup]:
    """Return the finished backups of the stack's database, oldest first; the stack need not be up.

    Raises:
        OperationError: the stack was never up, or its platform is not supported.
        BackupError: the repository does not answer.
    """
    check_supported(open_platform(workspace), "backup")
    if not workspace.sandbox.home.is_dir():
        raise OperationError(f"the stack {workspace.stack!r} does not exist: run `observatory up` to create it")
    return pgbackrest.list_backups(workspace.sandbox)
