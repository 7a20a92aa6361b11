"""The backup before a migration, made by pgBackRest in the stack's sandbox."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from observatory.backups.pgbackrest import (
    BackupType,
    create_backup,
    create_stanza,
    list_backups,
    verify_backup,
)
from observatory.database.errors import BackupFailedError
from observatory.database.migration_backup import Kind
from observatory.runtime import RuntimeFault, Sandbox


@dataclass(frozen=True)
class MigrationBackup:
    """Implements `observatory.database.Backup` for the stack in `sandbox`."""

    sandbox: Sandbox

    def latest_full(self) -> datetime | None:
        """Return when the newest undamaged full backup ended; None where there is none."""
        with _stops_the_migration():
            found = list_backups(self.sandbox)
        return max((each.ended for each in found if each.type is BackupType.FULL and not each.damaged), default=None)

    def create(self, kind: Kind) -> str:
        """Make a backup and return its label."""
        with _stops_the_migration():
            create_stanza(self.sandbox)  # an interrupted first `up` may have left none
            backup = create_backup(self.sandbox, BackupType.FULL if kind == "full" else BackupType.INCREMENTAL)
        return backup.label

    def verify(self, label: str) -> None:
        """Check the backup's files against their checksums."""
        with _stops_the_migration():
            verify_backup(self.sandbox, label)


@contextlib.contextmanager
def _stops_the_migration() -> Iterator[None]:
    try:
        yield
    except RuntimeFault as error:
        raise BackupFailedError(
            f"The backup failed, so nothing was migrated: {error}\nCorrect the cause and run again. `observatory "
            "backup list` shows the existing backups"
        ) from error
