"""Names of other packages that belong to the interface of this library: errors, progress and the results' types."""

from observatory.backups.tool import Backup, BackupDamagedError, BackupError, BackupRunningError, BackupType
from observatory.database.errors import (
    BackupFailedError,
    BaselineRefusedError,
    DatabaseDroppedError,
    DatabaseError,
    LockHeldError,
    MigrationFileError,
    MigrationNameError,
    RepairRefusedError,
    SampleError,
    UnreachableError,
)
from observatory.delivery.approvals import NotPermittedError
from observatory.delivery.environment import MetricsUnavailableError
from observatory.delivery.errors import (
    DeliveryRefusedError,
    DeploymentPausedError,
    LockLostError,
    RollbackFailedError,
    RolledBackError,
    TakenOverError,
    TrialFailedError,
    UnjudgedVersionError,
)
from observatory.delivery.releases import ReleaseError, ReleaseRefusedError
from observatory.documents.logins import AccessError
from observatory.documents.rollout import Deployment, RolloutDocument, RolloutError
from observatory.engines.embedded import EngineError, LockedError
from observatory.errors import ObservatoryError
from observatory.platforms.alertmanager import AlertmanagerError, Silence, UnknownSilenceError
from observatory.platforms.errors import (
    NeedsCliError,
    OperationError,
    ReleaseBuildError,
    StackNotUpError,
    UnsupportedOperationError,
)
from observatory.platforms.platform import DaemonStatus, EngineChoice
from observatory.platforms.prometheus_client import QueryRefusedError
from observatory.platforms.silence_terms import SilenceRefusedError, SilenceUsageError
from observatory.progress import Phase, Progress, Reporter, silent
from observatory.runtime import RuntimeFault
from observatory.runtime.errors import SandboxError
from observatory.runtime.home import HomeError
from observatory.scheduling.log_rotation import LogRotationError
from observatory.scheduling.runner import JobFailedError, JobRunningError, UnknownJobError
from observatory.scheduling.scheduler_process import SchedulerRunningError
from observatory.settings import SettingsError
from observatory.workspace import Workspace

__all__ = [
    "AccessError",
    "AlertmanagerError",
    "Backup",
    "BackupDamagedError",
    "BackupError",
    "BackupFailedError",
    "BackupRunningError",
    "BackupType",
    "BaselineRefusedError",
    "DaemonStatus",
    "DatabaseDroppedError",
    "DatabaseError",
    "DeliveryRefusedError",
    "Deployment",
    "DeploymentPausedError",
    "EngineChoice",
    "EngineError",
    "HomeError",
    "JobFailedError",
    "JobRunningError",
    "LockHeldError",
    "LockLostError",
    "LockedError",
    "LogRotationError",
    "MetricsUnavailableError",
    "MigrationFileError",
    "MigrationNameError",
    "NeedsCliError",
    "NotPermittedError",
    "ObservatoryError",
    "OperationError",
    "Phase",
    "Progress",
    "QueryRefusedError",
    "ReleaseBuildError",
    "ReleaseError",
    "ReleaseRefusedError",
    "RepairRefusedError",
    "Reporter",
    "RollbackFailedError",
    "RolledBackError",
    "RolloutDocument",
    "RolloutError",
    "RuntimeFault",
    "SampleError",
    "SandboxError",
    "SchedulerRunningError",
    "SettingsError",
    "Silence",
    "SilenceRefusedError",
    "SilenceUsageError",
    "StackNotUpError",
    "TakenOverError",
    "TrialFailedError",
    "UnjudgedVersionError",
    "UnknownJobError",
    "UnknownSilenceError",
    "UnreachableError",
    "UnsupportedOperationError",
    "Workspace",
    "silent",
]
