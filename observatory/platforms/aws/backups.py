"""Backups before migrations of a database on AWS."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

from observatory.database.errors import BackupFailedError
from observatory.database.migration_backup import Kind, ReusableBackup


@dataclass(frozen=True, kw_only=True)
class NoMigrationBackup:
    """Refuses: pgBackRest runs on the database's machine, which this program cannot reach."""

    stack: str

    def check_permitted(self) -> None:
        """Permit: `create` refuses."""

    def latest_full(self) -> datetime | None:
        """Refuse."""
        self._refuse()

    def reusable(self) -> ReusableBackup | None:
        """Refuse."""
        self._refuse()

    def archive(self) -> None:
        """Refuse."""
        self._refuse()

    def create(self, kind: Kind) -> str:  # noqa: ARG002 - of the protocol
        """Refuse."""
        self._refuse()

    def verify(self, label: str) -> None:  # noqa: ARG002 - of the protocol
        """Refuse."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise BackupFailedError(
            f"no backup of the stack {self.stack!r} can be made from this machine, so nothing was migrated: the "
            f"migrations of a stack on AWS are applied by `observatory up -e {self.stack}`"
        )
