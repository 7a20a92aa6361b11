"""Errors of backups and restores that belong to the interface of this library."""

from observatory.backups.cover import NotEnoughSpaceError
from observatory.backups.drill import DrillRefusedError
from observatory.backups.dump_manifest import DumpError, DumpRefusedError
from observatory.backups.flashback.errors import (
    CloneRefusedError,
    ConditionError,
    NothingNamedError,
    NotRefreshedError,
    NotRestoredError,
    TableRefusedError,
    UnknownCloneError,
)
from observatory.backups.lost_machine import RecoveryRefusedError
from observatory.backups.machine_keys import KeyFileError
from observatory.backups.repository_contents import UncoveredTargetError
from observatory.backups.repository_places import RepositoryPlaceError
from observatory.backups.restore_lock import RestoreRunningError
from observatory.backups.rollback.errors import DatabaseRollbackError, RollbackRefusedError
from observatory.backups.target import InvalidTargetError
from observatory.security.age_files import EncryptedFileError

__all__ = [
    "CloneRefusedError",
    "ConditionError",
    "DatabaseRollbackError",
    "DrillRefusedError",
    "DumpError",
    "DumpRefusedError",
    "EncryptedFileError",
    "InvalidTargetError",
    "KeyFileError",
    "NotEnoughSpaceError",
    "NotRefreshedError",
    "NotRestoredError",
    "NothingNamedError",
    "RecoveryRefusedError",
    "RepositoryPlaceError",
    "RestoreRunningError",
    "RollbackRefusedError",
    "TableRefusedError",
    "UncoveredTargetError",
    "UnknownCloneError",
]
