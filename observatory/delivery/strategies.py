"""Chooses the run for a deployment's strategy."""

from __future__ import annotations

from observatory.delivery.fenced_rollout import FencedRollout
from observatory.delivery.rolling import RollingUpdate
from observatory.delivery.run import Run
from observatory.delivery.traffic_shift import TrafficShift


def run_for(rollout: FencedRollout) -> Run:
    """Return the run of the deployment under way."""
    if rollout.deployment.strategy != "rolling":
        return TrafficShift(rollout)
    instances = rollout.environment.instances
    assert instances is not None  # noqa: S101 - a rolling update does not start without
    return RollingUpdate(rollout, instances)
