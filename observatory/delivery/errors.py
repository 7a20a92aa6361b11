"""How a delivery can end other than promoted; each error carries its exit code."""

from __future__ import annotations

from observatory.errors import REFUSED, ObservatoryError


class DeliveryRefusedError(ObservatoryError):
    """The deployment did not start and nothing changed; the message gives the reason and the remedy."""

    exit_code = REFUSED


class NothingToRollBackError(DeliveryRefusedError):
    """There was no deployment, or the last one was rolled back already."""


class TrialFailedError(ObservatoryError):
    """The version failed its pre-deployment tests; nothing changed."""


class UnjudgedVersionError(DeliveryRefusedError):
    """The pre-deployment tests cannot judge a version now: the live one fails them, too. Nothing changed."""


class TakenOverError(ObservatoryError):
    """Another deployment or rollback took over; this one stopped and changes nothing more."""


class LockLostError(ObservatoryError):
    """Another process took the deployment lock, which this one had lost with its connection to the database."""


class RolledBackError(ObservatoryError):
    """The deployment was rolled back for the reason in the message; the previous version has the traffic."""


class RollbackFailedError(ObservatoryError):
    """The rollback did not complete, or the fleet it restored is not healthy: an operator must act."""


class StepFailedError(ObservatoryError):
    """A step of the deployment failed, which rolls the deployment back."""


class DeploymentPausedError(ObservatoryError):
    """The gates had no verdict for too long; the deployment is paused with its traffic weights: an operator decides."""
