"""Errors of operations that cannot start."""

from __future__ import annotations

from observatory.errors import REFUSED, WRONG_USAGE, ObservatoryError


class OperationError(ObservatoryError):
    """The operation cannot start on this stack; nothing was changed. The message says what to do first."""

    exit_code = WRONG_USAGE


class StackNotUpError(OperationError):
    """The stack was never up, or is down; nothing was changed. Every operation that needs a stack raises it."""

    exit_code = REFUSED

    def __init__(self, stack: str) -> None:
        option = "" if stack == "local" else f" -e {stack}"
        super().__init__(f"the stack {stack!r} is not up: run `observatory up{option}` first")


class UnsupportedOperationError(OperationError):
    """The stack's platform does not offer the operation; nothing was changed."""


class NeedsCliError(OperationError):
    """The operation needs the Pulumi CLI; nothing was changed."""

    exit_code = REFUSED


class ReleaseBuildError(ObservatoryError):
    """The artifact of the reference service cannot be built; the message says what is missing."""
