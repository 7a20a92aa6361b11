"""The engine's errors: few classes, each message naming the cause, the place and the remedy.

Owns the exception types that a caller can meet. Raising them, and phrasing the message, is left to the module that
knows the circumstances.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from observatory.errors import INTERRUPTED, REFUSED, WRONG_USAGE, ObservatoryError

if TYPE_CHECKING:
    from observatory.engines.embedded.events import Result

INSTALL_URL = "https://www.pulumi.com/docs/install/"
INSTALL_CLI = f"install the Pulumi CLI ({INSTALL_URL}) and run the stack with it"


class EngineError(ObservatoryError):
    """Base of everything the engine raises on purpose.

    Attributes:
        result: What had been done when the run ended, or None if it ended before the first step.
    """

    result: Result | None = None


class ConfigError(EngineError):
    """Pulumi.yaml or the stack's configuration file cannot be used."""

    exit_code = WRONG_USAGE


class LockedError(EngineError):
    """Another process holds the stack's lock."""

    exit_code = REFUSED


class StateError(EngineError):
    """The stack's state file cannot be read or written; the last good one is kept."""


class PassphraseError(EngineError):
    """The passphrase does not decrypt this stack's secrets."""


class ProgramError(EngineError):
    """The Pulumi program raised; the message holds its own traceback."""


class StepFailed(EngineError):  # noqa: N818 - reads as what happened; EngineError says the rest
    """A provider refused or failed one step. What succeeded before it is kept in the state.

    Attributes:
        urn: The resource.
        operation: What was attempted, such as ``create``.
        detail: The provider's whole message, traceback included.
    """

    def __init__(self, message: str, *, urn: str, operation: str, detail: str = "") -> None:
        super().__init__(message)
        self.urn = urn
        self.operation = operation
        self.detail = detail


class UnsupportedError(EngineError):
    """The program, or its state, uses something that only the Pulumi CLI can do."""

    def __init__(self, feature: str) -> None:
        super().__init__(f"{feature} is not supported by the embedded engine; {INSTALL_CLI}")


class Interrupted(EngineError):  # noqa: N818 - not a fault
    """The run was asked to stop (SIGINT or SIGTERM); steps in flight were finished and saved."""

    exit_code = INTERRUPTED
