"""Undoes the last deployment, at its end or while it runs."""

from __future__ import annotations

from observatory.delivery.deployment import check_in_step, converge, current_document, run_of, take_over
from observatory.delivery.environment import Environment
from observatory.delivery.errors import DeliveryRefusedError
from observatory.documents.rollout import Deployment, RolloutDocument


def roll_back(environment: Environment, *, actor: str, reason: str) -> RolloutDocument:
    """Undo the last deployment, also while it runs, taking over from it.

    All traffic goes back to the fleet that served before; this asks nothing but the document and the balancer, so that
    it works when all else is down. The instances of a rolling update go back by turns, as they came.

    Raises:
        DeliveryRefusedError: no deployment is known that could be undone.
        RollbackFailedError: the balancer could not be told, an instance could not be brought back, or the fleet that
            serves now is not healthy.
    """
    current = current_document(environment)
    if current.deployment and current.deployment.status == "rolled-back":
        converge(environment)
    deployment = _undoable(environment, current)
    run = run_of(environment, *take_over(environment, current))
    try:
        return run.roll_back(f"{reason} ({actor})")
    finally:
        environment.silences.end(deployment.id)


def preview_rollback(environment: Environment) -> tuple[Deployment, bool]:
    """Return the deployment that `roll_back` would undo, and whether the fleet that would serve is healthy.

    Raises:
        DeliveryRefusedError: as `roll_back` would.
    """
    deployment = _undoable(environment, current_document(environment))
    return deployment, environment.hosts.healthy(deployment.source)


def _undoable(environment: Environment, current: RolloutDocument) -> Deployment:
    deployment = current.deployment
    if deployment is None:
        raise DeliveryRefusedError("nothing to roll back: no deployment was made on this stack")
    if deployment.status == "rolled-back":
        raise DeliveryRefusedError(
            f"nothing to roll back: {deployment.source} serves, the deployment of {deployment.version} was rolled back "
            "already"
        )
    if environment.instances and deployment.strategy == "rolling" and deployment.status == "promoted":
        check_in_step(environment.instances)
    return deployment
