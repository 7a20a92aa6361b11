"""Decides whether an alert of the active fleet may roll back a deployment after its promotion."""

from __future__ import annotations

from observatory.delivery.environment import Environment, MetricsUnavailableError
from observatory.documents.rollout import RolloutDocument
from observatory.settings import FleetName


def reason_not_to_roll_back(
    environment: Environment, document: RolloutDocument, *, fleet: FleetName, promoted: float | None, window_s: float
) -> str | None:
    """Return why an alert of a fleet does not roll back the last deployment, None where it does.

    Args:
        environment: with the metrics, and the health of the other fleet.
        document: the rollout document.
        fleet: that the alert is about.
        promoted: when its deployment was promoted, in seconds since the epoch; None if unknown.
        window_s: seconds after the promotion in which an alert counts.
    """
    deployment = document.deployment
    if deployment is None or deployment.status != "promoted" or deployment.target != fleet:
        return f"the last deployment did not promote {fleet}"
    if promoted is None or environment.clock.wall() - promoted > window_s:
        return f"{deployment.version} was not promoted within the last {window_s:.0f} s"
    if explanation := _other_cause(environment, fleet, since=deployment.exercised):
        return explanation
    if deployment.source != fleet and not environment.hosts.healthy(deployment.source):
        return f"{deployment.source}, which would get the traffic, is not healthy"
    return None


def _other_cause(environment: Environment, fleet: FleetName, *, since: float | None) -> str | None:
    """Return what other than the version explains the alert; unavailable metrics explain nothing."""
    try:
        outages, alerts = environment.metrics.outages(), environment.metrics.alerts(fleet, since=since)
    except MetricsUnavailableError:
        return None
    if outages:
        return outages[0]
    return None if alerts else f"no alert of {fleet} that began with this version is firing"
