"""Names of other packages that belong to the interface of this library: errors, progress and the results' types."""

from observatory.backups.pgbackrest import Backup, BackupDamagedError, BackupError, BackupRunningError, BackupType
from observatory.database.errors import BackupFailedError, DatabaseError, LockHeldError, SampleError, UnreachableError
from observatory.delivery.approvals import NotPermittedError
from observatory.delivery.errors import (
    DeliveryRefusedError,
    RollbackFailedError,
    RolledBackError,
    TakenOverError,
    TrialFailedError,
)
from observatory.delivery.releases import ReleaseError, ReleaseRefusedError
from observatory.engines.embedded import EngineError, LockedError
from observatory.errors import ObservatoryError
from observatory.platforms.alertmanager import AlertmanagerError, Silence, SilenceRefusedError
from observatory.platforms.errors import (
    NeedsCliError,
    OperationError,
    ReleaseBuildError,
    StackNotUpError,
    UnsupportedOperationError,
)
from observatory.platforms.platform import DaemonStatus, EngineChoice
from observatory.progress import Phase, Progress, Reporter, silent
from observatory.runtime import RuntimeFault
from observatory.scheduling.log_rotation import LogRotationError
from observatory.scheduling.runner import JobFailedError, JobRunningError, UnknownJobError
from observatory.settings import SettingsError

__all__ = [
    "AlertmanagerError",
    "Backup",
    "BackupDamagedError",
    "BackupError",
    "BackupFailedError",
    "BackupRunningError",
    "BackupType",
    "DaemonStatus",
    "DatabaseError",
    "DeliveryRefusedError",
    "EngineChoice",
    "EngineError",
    "JobFailedError",
    "JobRunningError",
    "LockHeldError",
    "LockedError",
    "LogRotationError",
    "NeedsCliError",
    "NotPermittedError",
    "ObservatoryError",
    "OperationError",
    "Phase",
    "Progress",
    "ReleaseBuildError",
    "ReleaseError",
    "ReleaseRefusedError",
    "Reporter",
    "RollbackFailedError",
    "RolledBackError",
    "RuntimeFault",
    "SampleError",
    "SettingsError",
    "Silence",
    "SilenceRefusedError",
    "StackNotUpError",
    "TakenOverError",
    "TrialFailedError",
    "UnknownJobError",
    "UnreachableError",
    "UnsupportedOperationError",
    "silent",
]
