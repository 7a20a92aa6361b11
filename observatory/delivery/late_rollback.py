"""After a promotion no gate is asked any more; an alert of the fleet that serves may still call for the way back."""

from __future__ import annotations

from observatory.delivery.environment import Environment, MetricsUnavailableError
from observatory.documents.rollout import RolloutDocument
from observatory.settings import FleetName


def reason_not_to_roll_back(
    environment: Environment, document: RolloutDocument, *, fleet: FleetName, promoted: float | None, window_s: float
) -> str | None:
    """Return why an alert of a fleet is no reason to roll the last deployment back; None where it is one.

    Args:
        environment: where metrics and the other fleet's health are looked at.
        document: what is live.
        fleet: whose alert fires.
        promoted: when its deployment was promoted, in seconds since the epoch; None where nobody knows.
        window_s: after which an alert is not the deployment's any more.
    """
    deployment = document.deployment
    if deployment is None or deployment.status != "promoted" or deployment.target != fleet:
        return f"{fleet} is not what the last deployment promoted"
    if promoted is None or environment.clock.now() - promoted > window_s:
        return f"{deployment.version} was not promoted within the last {window_s:.0f} s"
    if explained := _explained(environment, fleet, since=deployment.exercised):
        return explained
    if deployment.source != fleet and not environment.hosts.healthy(deployment.source):
        return f"{deployment.source}, which would serve, is not healthy"
    return None


def _explained(environment: Environment, fleet: FleetName, *, since: float | None) -> str | None:
    """Return what else explains the alert; metrics that nobody can ask explain nothing."""
    try:
        seen = environment.metrics.sample(fleet, since=since)
    except MetricsUnavailableError:
        return None
    if seen.database_down:
        return "the database does not answer, or did not lately"
    return None if seen.alerts else f"no alert of {fleet} that began with this version fires any more"
