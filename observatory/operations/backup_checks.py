"""The checks of a stack's backups: nothing is missing from the repositories, and the newest backups are young."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from observatory.backups.pgbackrest import PgBackRest
from observatory.operations.backups import list_backups, verify_backups
from observatory.operations.checks import CheckFailedError
from observatory.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class BackupChecks:
    """The checks of one stack's backups.

    Attributes:
        workspace: of the stack.
        newest_age: how old the newest backup of a repository may be, by the stack's schedule.
    """

    workspace: Workspace
    newest_age: timedelta

    def repository(self) -> str:
        """Check that no backup and no archived WAL segment is missing, and that no backup has damaged pages."""
        return self._verify(contents=False, passed="every backup and every WAL segment is there")

    def contents(self) -> str:
        """Read every file of the backup repositories."""
        return self._verify(contents=True, passed="every file of the repositories is sound")

    def newest(self) -> str:
        """Check the age of the newest backup in each repository."""
        return "; ".join(self._newest_in(number) for number in PgBackRest(self.workspace.sandbox).repositories)

    def _newest_in(self, repository: int) -> str:
        found = list_backups(self.workspace, repository=repository)
        newest, place = max(found, key=lambda backup: backup.ended, default=None), f"repository {repository}"
        if newest is None:
            raise CheckFailedError(f"{place} has no backup: run `observatory backup create`")
        age = datetime.now(UTC) - newest.ended
        hours = age.total_seconds() / 3600
        if age > self.newest_age:
            limit = self.newest_age.total_seconds() / 3600
            raise CheckFailedError(f"{newest.label} in {place} is {hours:.1f} hours old, the limit is {limit:g} hours")
        return f"{newest.label} in {place} is {hours:.1f} hours old"

    def _verify(self, *, contents: bool, passed: str) -> str:
        found = verify_backups(self.workspace, contents=contents)
        if found.findings:
            raise CheckFailedError("; ".join(f"repository {each.repository}: {each.text}" for each in found.findings))
        return passed
