"""Creating, listing and verifying backups of a stack's database."""

from __future__ import annotations

from dataclasses import replace

from observatory.backups import pgbackrest
from observatory.backups.exact_snapshot import ValuesNotRecordedError
from observatory.backups.pgbackrest import Backup, BackupType
from observatory.backups.recording import record_after_backup
from observatory.backups.repository import RepositoryCheck, check_repository
from observatory.nodes.host_jobs import BACKUP_JOBS
from observatory.platforms import open_platform
from observatory.platforms.errors import StackNotUpError
from observatory.platforms.platform import check_supported
from observatory.progress import Phase, Progress, Reporter, silent, task
from observatory.scheduling.records import RecordStore
from observatory.workspace import Workspace


def create_backup(
    workspace: Workspace, kind: BackupType = BackupType.INCREMENTAL, *, report: Reporter = silent
) -> Backup:
    """Create a backup of the stack's database and return it.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack is not up, or its platform is not supported.
        BackupRunningError: another backup is running.
        BackupDamagedError: the database has damaged pages; the backup is kept, and no earlier one has expired.
        BackupError: it failed; earlier backups are kept.
    """
    check_supported(open_platform(workspace), "backup")
    if not workspace.sandbox.alive():
        raise StackNotUpError(workspace.stack)
    with task(report, f"{kind} backup"):
        try:
            made = pgbackrest.create_backup(workspace.sandbox, kind)
        finally:
            check_repository(workspace.sandbox)  # the metrics then have the result of this backup
    if job := BACKUP_JOBS.get(made.type):
        RecordStore(sandbox=workspace.sandbox).record_success(job, started=made.started, ended=made.ended)
    record_values(workspace, made, report)
    return made


def record_values(workspace: Workspace, made: Backup, report: Reporter) -> None:
    """Record the values of the tables after a backup, for restore drills; that it failed is a warning."""
    try:
        with task(report, "record the values of the tables"):
            record_after_backup(workspace.sandbox, seconds=(made.ended - made.started).total_seconds())
    except ValuesNotRecordedError as error:
        report(Progress(task=str(error), phase=Phase.WARNED))


def list_backups(workspace: Workspace) -> list[Backup]:
    """Return the finished backups of the stack's database, oldest first; the stack need not be up.

    Each has the reason why it cannot be restored to the present, if there is one.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack was never up, or its platform is not supported.
        BackupError: the repository cannot be read.
    """
    _check_created(workspace)
    backups = pgbackrest.list_backups(workspace.sandbox)
    obstacles = check_repository(workspace.sandbox).obstacles
    return [replace(backup, obstacle=obstacles.get(backup.label, "")) for backup in backups]


def verify_backups(workspace: Workspace, *, contents: bool = False, report: Reporter = silent) -> RepositoryCheck:
    """Check the backup repository: no backup and no WAL segment is missing, and no backup has damaged pages.

    The stack need not be up. The result is published as metrics.

    Args:
        workspace: the stack's.
        contents: read every file and compare its checksum, too; takes minutes for each 10 GB.
        report: gets progress.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack was never up, or its platform is not supported.
        BackupError: the stack has no settings of a repository yet.
    """
    _check_created(workspace)
    with task(report, "check the backup repository"):
        return check_repository(workspace.sandbox, contents=contents)


def _check_created(workspace: Workspace) -> None:
    check_supported(open_platform(workspace), "backup")
    if not workspace.sandbox.home.is_dir():
        raise StackNotUpError(workspace.stack)
