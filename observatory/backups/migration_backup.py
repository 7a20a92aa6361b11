"""The backup before a migration, made by pgBackRest in the stack's sandbox."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from observatory.backups.exact_snapshot import ValuesNotRecordedError
from observatory.backups.pgbackrest import (
    BackupError,
    BackupType,
    archive_wal,
    create_backup,
    create_stanza,
    list_backups,
    repository_node,
    verify_backup,
)
from observatory.backups.recording import record_after_backup
from observatory.backups.verified import VerifiedBackups
from observatory.database.errors import BackupFailedError
from observatory.database.migration_backup import Kind, ReusableBackup
from observatory.nodes.programs.backup_repository import check
from observatory.runtime import RuntimeFault, Sandbox


@dataclass(frozen=True)
class MigrationBackup:
    """Implements `observatory.database.Backup` for the stack in `sandbox`.

    A backup that ended less than `reuse_minutes` ago is used instead of a new one; 0: never.
    """

    sandbox: Sandbox
    reuse_minutes: int = 0

    def latest_full(self) -> datetime | None:
        """Return when the newest undamaged full backup ended; None where there is none."""
        with _stops_the_migration():
            found = list_backups(self.sandbox)
        return max((each.ended for each in found if each.type is BackupType.FULL and not each.damaged), default=None)

    def reusable(self) -> ReusableBackup | None:
        """Return the newest undamaged backup within `reuse_minutes`, if its files and all WAL since are there."""
        if not self.reuse_minutes:
            return None
        with _stops_the_migration():
            found = [each for each in list_backups(self.sandbox) if not each.damaged]
            newest = max(found, key=lambda each: each.ended, default=None)
            age_limit = timedelta(minutes=self.reuse_minutes)
            if newest is None or not timedelta() <= datetime.now(UTC) - newest.ended < age_limit:
                return None
            if newest.label in check(repository_node(self.sandbox)).obstacles:
                return None
        return ReusableBackup(label=newest.label, ended=newest.ended, minutes=self.reuse_minutes)

    def archive(self) -> None:
        """Switch to a new WAL segment, and wait until the archive has the one before."""
        with _stops_the_migration():
            archive_wal(self.sandbox)

    def create(self, kind: Kind) -> str:
        """Make a backup and return its label."""
        with _stops_the_migration():
            create_stanza(self.sandbox)  # an interrupted first `up` may have left none
            backup = create_backup(self.sandbox, BackupType.FULL if kind == "full" else BackupType.INCREMENTAL)
        with contextlib.suppress(ValuesNotRecordedError):  # they are for drills, and the backup is complete
            record_after_backup(self.sandbox, seconds=(backup.ended - backup.started).total_seconds())
        return backup.label

    def verify(self, label: str) -> None:
        """Compare the files of a backup, and of those that it builds on, with their checksums.

        A backup whose files are as they were when they were compared is not read again. Of a new backup that builds on
        one of those, only the presence of its manifest and its WAL is checked.
        """
        with _stops_the_migration():
            verified = VerifiedBackups(self.sandbox)
            if verified.has(label):
                return
            if verified.has_prior_of(label):
                self._check_presence(label)
            else:
                verify_backup(self.sandbox, label)
            verified.add(label)

    def _check_presence(self, label: str) -> None:
        if obstacle := check(repository_node(self.sandbox)).obstacles.get(label):
            raise BackupError(f"verification of the backup {label} failed: {obstacle}")


@contextlib.contextmanager
def _stops_the_migration() -> Iterator[None]:
    try:
        yield
    except RuntimeFault as error:
        raise BackupFailedError(
            f"The backup failed, so nothing was migrated: {error}\nCorrect the cause and run again. `observatory "
            "backup list` shows the existing backups"
        ) from error
