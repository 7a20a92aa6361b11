"""The errors that the engines raise. Each message names the cause, the place and the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from observatory.errors import INTERRUPTED, REFUSED, WRONG_USAGE, ObservatoryError

if TYPE_CHECKING:
    from observatory.engines.embedded.events import Result

INSTALL_URL = "https://www.pulumi.com/docs/install/"
INSTALL_CLI = f"install the Pulumi CLI ({INSTALL_URL}) and run the stack with it"


class EngineError(ObservatoryError):
    """Base of the errors that the engines raise on purpose.

    Attributes:
        result: The steps that were done when the run ended, or None if it ended before the first step.
    """

    result: Result | None = None


class ConfigError(EngineError):
    """Pulumi.yaml or the stack's configuration file cannot be used."""

    exit_code = WRONG_USAGE


class LockedError(EngineError):
    """Another process holds the stack's lock."""

    exit_code = REFUSED


class StateError(EngineError):
    """The stack's state file cannot be read or written; the previous one is kept."""


class PassphraseError(EngineError):
    """The passphrase does not decrypt this stack's secrets."""


class ProgramError(EngineError):
    """The Pulumi program failed; the message is its traceback."""


class StepFailed(EngineError):  # noqa: N818 - a public name
    """A provider refused or failed one step. What succeeded before it is kept in the state.

    Attributes:
        urn: The resource.
        operation: The operation that failed, such as ``create``.
        detail: The provider's complete message, including its traceback.
    """

    def __init__(self, message: str, *, urn: str, operation: str, detail: str = "") -> None:
        super().__init__(message)
        self.urn = urn
        self.operation = operation
        self.detail = detail


class UnsupportedError(EngineError):
    """The program, or its state, uses a feature that only the Pulumi CLI supports."""

    def __init__(self, feature: str) -> None:
        super().__init__(f"{feature} is not supported by the embedded engine; {INSTALL_CLI}")


class Interrupted(EngineError):  # noqa: N818 - a public name
    """A signal (SIGINT, SIGTERM or SIGHUP) stopped the run; the steps in flight were finished and saved."""

    exit_code = INTERRUPTED
