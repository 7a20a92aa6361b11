"""Errors of operations that cannot start."""

from __future__ import annotations

from observatory.errors import REFUSED, WRONG_USAGE, ObservatoryError


class OperationError(ObservatoryError):
    """The operation cannot start on this stack; nothing was changed. The message says what to do first."""

    exit_code = WRONG_USAGE


class UnsupportedOperationError(OperationError):
    """The stack's platform does not offer the operation; nothing was changed."""


class NeedsCliError(OperationError):
    """The operation needs the Pulumi CLI; nothing was changed."""

    exit_code = REFUSED


class ReleaseBuildError(ObservatoryError):
    """The artifact of the reference service cannot be built; the message says what is missing."""
