"""A deployment request: which version to deploy, by which strategy, to which fleet, for which operator."""

from __future__ import annotations

from dataclasses import dataclass

from observatory.delivery.errors import DeliveryRefusedError
from observatory.documents.rollout import HEALTH_CHECK_S, TOTAL_WEIGHT, Strategy
from observatory.settings import FleetName


@dataclass(frozen=True, kw_only=True)
class DeploymentRequest:
    """What a deployment is to do.

    Attributes:
        version: to deploy.
        sha256: of the version's artifact.
        strategy: blue-green moves all traffic at once, canary in steps; rolling updates one fleet in batches.
        target: fleet to deploy to; None is the idle fleet, for a rolling update the active fleet.
        weights: traffic weight of the target in percent, one for each step, ascending to 100; ignored by rolling.
        batch_size: instances that a rolling update replaces at a time.
        gated: whether gates evaluate each step; a rollback to a version has no gates.
        bake_s: seconds that each step is evaluated for.
        actor: who deploys.
        approved_by: who approved the version, None if it needed no approval.
        accept_drift: deploy although the balancer differs from the rollout document.
        skip_tests: deploy without the pre-deployment tests.
        emergency: deploy although the active fleet differs from its settings, and repair it.
        health_check_s: seconds that a fleet may take to become ready before it gets more traffic.
    """

    version: str
    sha256: str
    strategy: Strategy
    target: FleetName | None = None
    weights: tuple[int, ...] = (TOTAL_WEIGHT,)
    batch_size: int = 1
    gated: bool = True
    bake_s: float
    actor: str
    approved_by: str | None = None
    accept_drift: bool = False
    skip_tests: bool = False
    emergency: bool = False
    health_check_s: float = HEALTH_CHECK_S


def canary_weights(first: int, steps: tuple[int, ...]) -> tuple[int, ...]:
    """Return the traffic weights of a canary: `first`, every larger one of `steps`, and 100.

    Args:
        first: percent of the first step, 1 to 99.
        steps: percentages from the settings.

    Raises:
        DeliveryRefusedError: `first` is out of range.
    """
    if not 1 <= first < TOTAL_WEIGHT:
        raise DeliveryRefusedError(
            f"canary percentage is {first}, expected a number between 1 and {TOTAL_WEIGHT - 1}: change "
            "--canary-percentage or `delivery.canary_steps`"
        )
    return (first, *sorted({step for step in steps if first < step < TOTAL_WEIGHT}), TOTAL_WEIGHT)
