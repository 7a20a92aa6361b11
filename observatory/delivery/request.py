"""A deployment request: which version, how, where to and by whom."""

from __future__ import annotations

from dataclasses import dataclass

from observatory.delivery.errors import DeliveryRefusedError
from observatory.documents.rollout import HEALTH_CHECK_S, TOTAL_WEIGHT, Strategy
from observatory.settings import FleetName


@dataclass(frozen=True, kw_only=True)
class DeploymentRequest:
    """What is wanted.

    Attributes:
        version: to bring, with its artifact's SHA-256.
        strategy: blue-green moves all traffic at once, canary by steps, rolling the instances of one fleet by turns.
        target: the fleet to use; None for the idle one, of a rolling update for the one that serves.
        weights: percent on the target, a number for each step, growing to 100; of no meaning to a rolling update.
        batch_size: instances that a rolling update takes at a time.
        gated: whether each step is watched and judged; a way back to a version is not.
        bake_s: seconds that each step is watched.
        actor: who wants it.
        approved_by: who has approved the version, where somebody has.
        accept_drift: go on although the balancer divides the traffic in another way than the document says.
        skip_tests: bring the version without having tried it apart from the fleets before.
        health_check_s: seconds that a fleet gets to be ready before it takes more traffic.
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
    health_check_s: float = HEALTH_CHECK_S


def canary_weights(first: int, steps: tuple[int, ...]) -> tuple[int, ...]:
    """Return the weights of a canary that starts at `first` percent and goes on by the steps above it, to all.

    Raises:
        DeliveryRefusedError: no percentage.
    """
    if not 1 <= first < TOTAL_WEIGHT:
        raise DeliveryRefusedError(f"a canary of {first} %: between 1 and {TOTAL_WEIGHT - 1} is possible")
    return (first, *sorted({step for step in steps if first < step < TOTAL_WEIGHT}), TOTAL_WEIGHT)
