"""Creating, listing and verifying backups of a stack's database, in each of its repositories."""

from __future__ import annotations

from dataclasses import replace

from observatory.backups.exact_snapshot import ValuesNotRecordedError
from observatory.backups.migration_backup import MigrationBackup
from observatory.backups.pgbackrest import PgBackRest
from observatory.backups.recording import record_after_backup
from observatory.backups.repository import RepositoryCheck, check_repositories
from observatory.backups.scratch import remove_abandoned
from observatory.backups.tool import Backup, BackupError, BackupRunningError, BackupType
from observatory.database import BackupFailedError, make_backup
from observatory.errors import FAILED
from observatory.nodes.host_jobs import BACKUP_JOBS
from observatory.operations.backup_drill import publish_receipts
from observatory.platforms import open_platform
from observatory.platforms.errors import StackNotUpError
from observatory.platforms.platform import check_supported
from observatory.progress import Phase, Progress, Reporter, silent, task, tell
from observatory.scheduling.records import RecordStore
from observatory.workspace import Workspace


def create_backups(
    workspace: Workspace,
    kind: BackupType = BackupType.INCREMENTAL,
    *,
    repository: int | None = None,
    report: Reporter = silent,
) -> list[Backup]:
    """Create a backup of the stack's database in each repository, or in one, and return them.

    A repository that fails does not keep the others from their backup.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack is not up, or its platform is not supported.
        BackupRunningError: another backup is running.
        BackupDamagedError: the database has damaged pages; the backup is kept, and no earlier one has expired.
        BackupError: it failed in a repository; earlier backups are kept.
    """
    check_supported(open_platform(workspace), "backup")
    if not workspace.sandbox.alive():
        raise StackNotUpError(workspace.stack)
    tool, made, failures = PgBackRest(workspace.sandbox), list[Backup](), list[BackupError]()
    try:
        for number in tool.repositories if repository is None else (repository,):
            try:
                with task(report, f"{kind} backup to repository {number}"):
                    made.append(tool.backup(kind, repository=number))
            except BackupError as error:
                if isinstance(error, BackupRunningError) and not made:
                    raise  # nothing was changed
                failures.append(error)
    finally:
        check_repositories(workspace.sandbox)  # the metrics then have the result of this backup
    if {each.repository for each in made} == set(tool.repositories):
        _record_run(workspace, made)
    if made:
        record_values(workspace, made, report)
    if failures:
        raise _joined(failures)
    return made


def back_up_repositories(workspace: Workspace, *, report: Reporter = silent) -> dict[int, str]:
    """Create and verify a backup in each repository, and return their labels by the repository's number.

    A repository that fails does not keep the others from their backup.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack was never up, or its platform is not supported.
        BackupFailedError: a backup could not be created or verified.
    """
    _check_created(workspace)
    labels, failures = dict[int, str](), list[BackupFailedError]()
    for number in PgBackRest(workspace.sandbox).repositories:
        try:
            with task(report, f"backup to repository {number}") as at:
                backup = MigrationBackup(workspace.sandbox, repository=number)
                labels[number] = make_backup(backup, at, reuse=False)
        except BackupFailedError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return labels


def record_values(workspace: Workspace, made: list[Backup], report: Reporter) -> None:
    """Record the values of the tables after backups, for restore drills; that it failed is a warning."""
    try:
        with task(report, "record the values of the tables"):
            seconds = sum((each.ended - each.started).total_seconds() for each in made)
            record_after_backup(workspace.sandbox, seconds=seconds)
    except ValuesNotRecordedError as error:
        tell(report, Progress(task=str(error), phase=Phase.WARNED))


def list_backups(workspace: Workspace, *, repository: int | None = None, report: Reporter = silent) -> list[Backup]:
    """Return the finished backups of the stack's database, oldest first; the stack need not be up.

    Each has the reason why it cannot be restored to the present, if there is one. A repository that cannot be read is
    reported as a warning, if another can.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack was never up, or its platform is not supported.
        BackupError: no repository can be read.
    """
    _check_created(workspace)
    tool, backups, failures = PgBackRest(workspace.sandbox), list[Backup](), list[BackupError]()
    numbers = tool.repositories if repository is None else (repository,)
    for number in numbers:
        try:
            backups += tool.info(number)
        except BackupError as error:
            failures.append(error)
    if len(failures) == len(numbers):
        raise _joined(failures)
    for failure in failures:
        tell(report, Progress(task=str(failure), phase=Phase.WARNED))
    obstacles = check_repositories(workspace.sandbox).obstacles
    found = [replace(each, obstacle=obstacles.get((each.repository, each.label), "")) for each in backups]
    return sorted(found, key=lambda each: each.ended)


def verify_backups(
    workspace: Workspace, *, repository: int | None = None, contents: bool = False, report: Reporter = silent
) -> RepositoryCheck:
    """Check the backup repositories: no backup and no WAL segment is missing, and no backup has damaged pages.

    The stack need not be up. The result is published as metrics. What killed restores have left is removed.

    Args:
        workspace: the stack's.
        repository: return what is wrong with this one only.
        contents: read every file and compare its checksum, too; takes minutes for each 10 GB.
        report: gets progress.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack was never up, or its platform is not supported.
        BackupError: the stack has no settings of its repositories yet, or there is no such repository.
    """
    _check_created(workspace)
    remove_abandoned(workspace.sandbox)
    with task(report, "check the backup repositories" if repository is None else f"check repository {repository}"):
        found = check_repositories(workspace.sandbox, repository=repository, contents=contents)
    publish_receipts(workspace)
    return found


def _check_created(workspace: Workspace) -> None:
    check_supported(open_platform(workspace), "backup")
    if not workspace.sandbox.home.is_dir():
        raise StackNotUpError(workspace.stack)


def _joined(failures: list[BackupError]) -> BackupError:
    """Return one error for the failures of several repositories, of their kind if they have the same."""
    first = failures[0]
    kind = type(first) if len({type(each) for each in failures}) == 1 and first.exit_code == FAILED else BackupError
    return kind("\n".join(dict.fromkeys(str(each) for each in failures)))


def _record_run(workspace: Workspace, made: list[Backup]) -> None:
    """Record the run of the scheduled job, of which backups by hand are one, too."""
    for kind in {each.type for each in made}:
        if job := BACKUP_JOBS.get(kind):
            times = [each for each in made if each.type is kind]
            store = RecordStore(sandbox=workspace.sandbox)
            store.record_success(job, started=times[0].started, ended=times[-1].ended)
