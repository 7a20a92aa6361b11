"""The checks of a stack's backups: nothing is missing from the repository, and the newest backup is young."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from observatory.operations.backups import list_backups, verify_backups
from observatory.operations.checks import CheckFailedError
from observatory.workspace import Workspace

BACKUP_HOURS = 26  # one a day, and two hours for it to finish


@dataclass(frozen=True, kw_only=True)
class BackupChecks:
    """The checks of one stack's backups."""

    workspace: Workspace

    def repository(self) -> str:
        """Check that no backup and no archived WAL segment is missing, and that no backup has damaged pages."""
        return self._verify(contents=False, passed="every backup and every WAL segment is there")

    def contents(self) -> str:
        """Read every file of the backup repository."""
        return self._verify(contents=True, passed="every file of the repository is sound")

    def newest(self) -> str:
        """Check the age of the newest backup."""
        newest = max(list_backups(self.workspace), key=lambda backup: backup.ended, default=None)
        if newest is None:
            raise CheckFailedError("there is no backup: run `observatory backup create`")
        age = datetime.now(UTC) - newest.ended
        hours = age.total_seconds() / 3600
        if age > timedelta(hours=BACKUP_HOURS):
            raise CheckFailedError(f"{newest.label} is {hours:.0f} hours old, the limit is {BACKUP_HOURS} hours")
        return f"{newest.label} is {hours:.1f} hours old"

    def _verify(self, *, contents: bool, passed: str) -> str:
        found = verify_backups(self.workspace, contents=contents)
        if found.findings:
            raise CheckFailedError("; ".join(each.text for each in found.findings))
        return passed
