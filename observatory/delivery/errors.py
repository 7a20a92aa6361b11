"""What can end a delivery; the base of each carries the exit code."""

from __future__ import annotations

from observatory.errors import REFUSED, ObservatoryError


class DeliveryRefusedError(ObservatoryError):
    """The deployment was not begun, and nothing was changed; the message says what stands in the way."""

    exit_code = REFUSED


class TrialFailedError(ObservatoryError):
    """The version failed a test before the deployment, and nothing was changed; the message says which."""


class TakenOverError(ObservatoryError):
    """Another deployment or rollback took over; this one stopped and touches nothing more."""


class RolledBackError(ObservatoryError):
    """The deployment was rolled back; the message says why. The old version serves."""


class RollbackFailedError(ObservatoryError):
    """The traffic could not be brought back, or the fleet that it came back to is not healthy: somebody must look."""


class StepFailedError(ObservatoryError):
    """A reason to roll back."""
