"""The backup before a migration, made by pgBackRest in the stack's sandbox.

One sound backup is enough for a migration: the first repository that works has it. So a migration can run while
another repository is unreachable. The scheduled backups go to each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

from observatory.backups.exact_snapshot import ValuesNotRecordedError
from observatory.backups.pgbackrest import PgBackRest
from observatory.backups.receipts import DrillRequirement
from observatory.backups.recording import record_after_backup
from observatory.backups.tool import Backup, BackupError, BackupRunningError, BackupTool, BackupType
from observatory.backups.verified import VerifiedBackups
from observatory.database.errors import BackupFailedError
from observatory.database.migration_backup import Kind, ReusableBackup
from observatory.runtime import RuntimeFault, Sandbox


@dataclass(frozen=True)
class MigrationBackup:
    """Implements `observatory.database.Backup` for the stack in `sandbox`.

    A backup that ended less than `reuse_minutes` ago is used instead of a new one; 0: never.
    Migrations need the receipt of a restore drill that is `required`; None: none.
    The backup is in `repository`; None: in the first one that works.
    """

    sandbox: Sandbox
    reuse_minutes: int = 0
    required: DrillRequirement | None = None
    repository: int | None = None

    def check_permitted(self) -> None:
        """Refuse migrations without the receipt of a restore drill that `required` describes."""
        if self.required:
            with _stops_the_migration():
                self.required.check(self.sandbox)

    def latest_full(self) -> datetime | None:
        """Return when the newest undamaged full backup ended; None where there is none."""
        with _stops_the_migration():
            found = self._undamaged()
        return max((each.ended for each in found if each.type is BackupType.FULL), default=None)

    def reusable(self) -> ReusableBackup | None:
        """Return the newest undamaged backup within `reuse_minutes`, if its files and all WAL since are there."""
        with _stops_the_migration():
            found = self._reusable()
        if found is None:
            return None
        return ReusableBackup(label=found.label, ended=found.ended, minutes=self.reuse_minutes)

    def archive(self) -> None:
        """Switch to a new WAL segment, and wait until the archive of the reused backup has the one before."""
        with _stops_the_migration():
            newest = self._reusable() or max(self._undamaged(), key=lambda each: each.ended, default=None)
            self._tool.archive_wal(newest.repository if newest else self._repositories[0])

    def create(self, kind: Kind) -> str:
        """Make a backup in the first repository that works, and return its label."""
        with _stops_the_migration():
            self._prepare()
            backup = self._create(BackupType.FULL if kind == "full" else BackupType.INCREMENTAL)
        with contextlib.suppress(ValuesNotRecordedError):  # they are for drills, and the backup is complete
            record_after_backup(self.sandbox, seconds=(backup.ended - backup.started).total_seconds())
        return backup.label

    def verify(self, label: str) -> None:
        """Compare the files of a backup, and of those that it builds on, with their checksums.

        A backup whose files are as they were when they were compared is not read again. Of a new backup that builds on
        one of those, only the presence of its manifest and its WAL is checked.
        """
        with _stops_the_migration():
            repository = self._repository_of(label)
            verified = VerifiedBackups(self.sandbox, repository)
            if verified.has(label):
                return
            contents = not verified.has_prior_of(label)
            for finding in self._tool.verify(repository, label=label, contents=contents).findings:
                raise BackupError(f"verification of the backup {label} failed: {finding.text}")
            verified.add(label)

    @cached_property
    def _tool(self) -> BackupTool:
        return PgBackRest(self.sandbox)

    @property
    def _repositories(self) -> tuple[int, ...]:
        return self._tool.repositories if self.repository is None else (self.repository,)

    def _prepare(self) -> None:
        """Create what an interrupted first `up` may have left out; a repository that fails is not needed."""
        try:
            self._tool.prepare()
        except BackupError:
            if not self._undamaged():
                raise

    def _create(self, kind: BackupType) -> Backup:
        failures: list[BackupError] = []
        for repository in self._repositories:
            try:
                return self._tool.backup(kind, repository=repository)
            except BackupRunningError:
                raise
            except BackupError as error:
                failures.append(error)
        raise failures[0]

    def _reusable(self) -> Backup | None:
        if not self.reuse_minutes:
            return None
        age_limit = timedelta(minutes=self.reuse_minutes)
        young = [each for each in self._undamaged() if timedelta() <= datetime.now(UTC) - each.ended < age_limit]
        for backup in sorted(young, key=lambda each: each.ended, reverse=True):
            if backup.label not in self._tool.verify(backup.repository).obstacles:
                return backup
        return None

    def _undamaged(self) -> list[Backup]:
        """Return the backups without damaged pages of every repository that can be read.

        Raises:
            BackupError: no repository can be read.
        """
        found: list[Backup] = []
        failures: list[BackupError] = []
        for repository in self._repositories:
            try:
                found += [each for each in self._tool.info(repository) if not each.damaged]
            except BackupError as error:
                failures.append(error)
        if failures and len(failures) == len(self._repositories):
            raise failures[0]
        return found

    def _repository_of(self, label: str) -> int:
        holder = next((each.repository for each in self._undamaged() if each.label == label), None)
        if holder is None:
            raise BackupError(f"verification of the backup {label} failed: no repository has it")
        return holder


@contextlib.contextmanager
def _stops_the_migration() -> Iterator[None]:
    try:
        yield
    except RuntimeFault as error:
        raise BackupFailedError(
            f"The backup failed, so nothing was migrated: {error}\nCorrect the cause and run again. `observatory "
            "backup list` shows the existing backups"
        ) from error
