"""The interface to a backup tool, with what it returns and raises; `observatory.backups.pgbackrest` implements it.

A stack has several repositories, numbered from 1. Each has backups and WAL of its own, so either is enough for a
restore.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from observatory.errors import REFUSED
from observatory.nodes.programs.backup_repository import Report
from observatory.runtime import RuntimeFault


class BackupError(RuntimeFault):
    """A command of the backup tool failed; the message ends with its last lines."""


class BackupRunningError(BackupError):
    """Another backup is running; nothing was changed."""

    exit_code = REFUSED


class BackupDamagedError(BackupError):
    """The database has damaged pages, and so has the new backup, which is kept; no earlier backup has expired."""


class RepositoryUnreadableError(BackupError):
    """The repository cannot be read; nothing was changed."""


class RepositoryUnwritableError(BackupError):
    """The repository is full, too full for the backup, or read-only; earlier backups are kept."""


class OtherDatabaseError(BackupError):
    """The repository has the backups of another database; nothing was changed."""


class BackupType(StrEnum):
    """What a backup contains: everything; the changes since the last full one; the changes since the last one."""

    FULL = "full"
    DIFFERENTIAL = "differential"
    INCREMENTAL = "incremental"


@dataclass(frozen=True, kw_only=True)
class Backup:
    """A finished backup.

    Attributes:
        repository: the number of its repository.
        label: its name in the repository.
        type: full, differential or incremental.
        started: its start, in UTC.
        ended: its end, in UTC.
        database_bytes: size of the restored database.
        repository_bytes: size that it added to the repository.
        prior: label of the backup that it builds on; None for a full backup.
        wal_start: first WAL segment that makes it consistent.
        wal_stop: last such segment.
        damaged: it contains pages with wrong checksums.
        obstacle: why it cannot be restored to the present; empty where it can, None where that was not checked.
    """

    repository: int
    label: str
    type: BackupType
    started: datetime
    ended: datetime
    database_bytes: int
    repository_bytes: int
    prior: str | None
    wal_start: str
    wal_stop: str
    damaged: bool
    obstacle: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a plain mapping, times in ISO 8601."""
        return {**asdict(self), "started": self.started.isoformat(), "ended": self.ended.isoformat()}


class BackupTool(Protocol):
    """Makes, restores and verifies the backups of one stack's database.

    Every method raises `RepositoryUnreadableError` or another `BackupError` if the tool fails.
    """

    @property
    def repositories(self) -> tuple[int, ...]:
        """The numbers of the stack's repositories."""

    def prepare(self, *, running: bool = True) -> None:
        """Make every repository ready for WAL and backups; an existing one stays.

        Args:
            running: whether the database runs; otherwise its files are enough.
        """

    def archive_wal(self, repository: int) -> None:
        """Switch to a new WAL segment, and wait until the repository has the one before."""

    def backup(self, kind: BackupType, *, repository: int, timeout: float | None = None) -> Backup:
        """Make a backup and return it; a full one where there is none to build on. Then earlier ones may expire.

        Args:
            kind: its type.
            repository: where it is stored.
            timeout: seconds until it is stopped; the next backup reuses the copied files.

        Raises:
            BackupRunningError: another backup to this repository is running.
            RepositoryUnwritableError: the repository is full or read-only, or a full backup does not fit into it.
            BackupDamagedError: the database has damaged pages; the backup is kept, and no earlier one has expired.
        """

    def restore(self, label: str, *, repository: int, directory: str) -> None:
        """Copy the files of a backup into an empty directory, a path of the sandbox.

        Recovery is not configured: see `restore_command`. Nothing else reads or writes the directory meanwhile.
        """

    def restore_command(self, repository: int, *, directory: str | None = None) -> str:
        """Return PostgreSQL's restore_command that reads WAL from the repository.

        Args:
            repository: its number.
            directory: of the data that is recovered; None: the live one.
        """

    def verify(self, repository: int, *, label: str | None = None, contents: bool = False) -> Report:
        """Return what is wrong with the repository, and which backups cannot be restored to the present.

        The report has the findings of `contents` apart.

        Args:
            repository: its number.
            label: check one backup, with those that it builds on and their WAL; None: everything.
            contents: read every file and compare its checksum; takes minutes for each 10 GB.
        """

    def info(self, repository: int | None = None) -> list[Backup]:
        """Return the finished backups of a repository, or of all, oldest first."""

    def expire(self, repository: int) -> None:
        """Remove the backups older than the retention, and their WAL."""
