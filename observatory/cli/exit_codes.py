"""Which exit code each of the library's errors is. Imported when there is one: it knows every part of the library."""

from __future__ import annotations

from observatory.backups.pgbackrest import BackupRunningError
from observatory.cli.app import FAILED, INTERRUPTED, REFUSED, WRONG_USAGE
from observatory.database.errors import (
    ContractRefusedError,
    DatabaseError,
    EditionRefusedError,
    MigrationFileError,
    MigrationHistoryError,
    SampleError,
)
from observatory.database.errors import LockHeldError as DatabaseLockHeldError
from observatory.delivery.approvals import NotPermittedError
from observatory.delivery.deployment import (
    DeliveryRefusedError,
    RollbackFailedError,
    RolledBackError,
    TakenOverError,
    TrialFailedError,
)
from observatory.delivery.environment import BalancerError
from observatory.delivery.releases import ReleaseError, ReleaseRefusedError
from observatory.documents.logins import AccessError
from observatory.documents.rollout import RolloutError
from observatory.engines.embedded import ConfigError, EngineError, Interrupted, LockedError
from observatory.operations.bootstrap import OperationError
from observatory.operations.demonstration import DemonstrationError
from observatory.operations.engine_choice import NeedsCliError
from observatory.operations.release_workflow import MigratedDatabaseError
from observatory.platforms.alertmanager import AlertmanagerError, SilenceRefusedError
from observatory.runtime import LockHeldError, PortInUse, RuntimeFault
from observatory.scheduling.runner import UnknownJobError
from observatory.settings.base import SettingsError
from service.build import BuildError

EXIT_CODES: dict[type[BaseException], int] = {
    SettingsError: WRONG_USAGE,
    OperationError: WRONG_USAGE,
    NeedsCliError: REFUSED,
    ConfigError: WRONG_USAGE,
    UnknownJobError: WRONG_USAGE,
    LockedError: REFUSED,
    PortInUse: REFUSED,
    BackupRunningError: REFUSED,
    MigrationFileError: REFUSED,
    MigrationHistoryError: REFUSED,
    LockHeldError: REFUSED,
    Interrupted: INTERRUPTED,
    DeliveryRefusedError: REFUSED,
    NotPermittedError: REFUSED,
    DatabaseLockHeldError: REFUSED,
    ContractRefusedError: REFUSED,
    EditionRefusedError: REFUSED,
    SampleError: REFUSED,
    SilenceRefusedError: REFUSED,
    DatabaseError: FAILED,
    RolledBackError: FAILED,
    RollbackFailedError: FAILED,
    TakenOverError: FAILED,
    TrialFailedError: FAILED,
    MigratedDatabaseError: FAILED,
    BalancerError: FAILED,
    AlertmanagerError: FAILED,
    EngineError: FAILED,
    RuntimeFault: FAILED,
    AccessError: FAILED,
    RolloutError: FAILED,
    ReleaseRefusedError: REFUSED,
    ReleaseError: FAILED,
    BuildError: FAILED,
    DemonstrationError: FAILED,
}


def exit_code(error: Exception) -> int | None:
    """Return the exit code of an error, by its most particular class; None where it is not one of the library's."""
    return next((EXIT_CODES[kind] for kind in type(error).mro() if kind in EXIT_CODES), None)
