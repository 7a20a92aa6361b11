"""The command `observatory`: parses, shows progress, prints, and chooses the exit code. Nothing else.

One module for each group of commands; importing it registers them.
Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 3 refused, nothing changed; 130 interrupted.
"""

from __future__ import annotations

import errno
import itertools
import sys
from typing import NoReturn

from observatory.access import AccessError
from observatory.backups import BackupRunningError
from observatory.bootstrap import OperationError
from observatory.cli import (  # noqa: F401 - each registers its commands
    access,
    backup,
    data,
    database,
    delivery,
    logs,
    scheduler,
    silence,
    stack,
)
from observatory.cli.app import FAILED, INTERRUPTED, REFUSED, WRONG_USAGE, app, print_json
from observatory.console import complain
from observatory.database.errors import (
    ContractRefusedError,
    DatabaseError,
    MigrationFileError,
    MigrationHistoryError,
)
from observatory.database.errors import LockHeldError as DatabaseLockHeldError
from observatory.database.sample import SampleError
from observatory.delivery.deployment import (
    DeliveryRefusedError,
    RollbackFailedError,
    RolledBackError,
    TakenOverError,
)
from observatory.delivery.protocols import BalancerError
from observatory.delivery.releases import ReleaseError, ReleaseRefusedError
from observatory.delivery.rollout import RolloutError
from observatory.demonstration import DemonstrationError
from observatory.engine import ConfigError, EngineError, Interrupted, LockedError
from observatory.interruption import interrupt_on_signals
from observatory.operations import NeedsCliError
from observatory.platforms.alertmanager import AlertmanagerError, SilenceRefusedError
from observatory.runtime import LockHeldError, PortInUse, RuntimeFault
from observatory.scheduling.runner import UnknownJobError
from observatory.settings import SettingsError
from service.build import BuildError

REMEDIES = {
    errno.ENOSPC: "; free some disk and run the command again",
    errno.EROFS: "; the checkout must be writable",
    errno.EACCES: "; the checkout must be yours",
}
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
    DatabaseLockHeldError: REFUSED,
    ContractRefusedError: REFUSED,
    SampleError: REFUSED,
    SilenceRefusedError: REFUSED,
    DatabaseError: FAILED,
    RolledBackError: FAILED,
    RollbackFailedError: FAILED,
    TakenOverError: FAILED,
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


def main() -> None:
    """Run the command and end the process with its exit code."""
    interrupt_on_signals()
    try:
        app(standalone_mode=True)
    except tuple(EXIT_CODES) as error:
        # The most particular class decides: a locked stack is an engine's error too.
        code = next(EXIT_CODES[kind] for kind in type(error).mro() if kind in EXIT_CODES)
        _end(str(error), type(error).__name__, code)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _end(f"{place}{error.strerror or error}{REMEDIES.get(error.errno or 0, '')}", "OSError", FAILED)
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        # Which is what typer makes of KeyboardInterrupt, without a word.
        _end("interrupted; run the command again, it goes on where it was", "Interrupted", INTERRUPTED)


def _end(message: str, kind: str, code: int) -> NoReturn:
    """Tell what went wrong, to people and, where they asked for JSON, to programs; end the process."""
    complain(message)
    if {"--output=json"} & set(sys.argv) or ("--output", "json") in itertools.pairwise(sys.argv):
        print_json({"error": {"kind": kind, "message": message}, "exit_code": code})
    sys.exit(code)
