"""Rolls back the last deployment, finished or under way."""

from __future__ import annotations

from observatory.delivery.convergence import converge, current_document
from observatory.delivery.environment import Environment
from observatory.delivery.errors import DeliveryRefusedError
from observatory.delivery.fenced_rollout import FencedRollout
from observatory.delivery.preparation import check_in_sync
from observatory.delivery.strategies import run_for
from observatory.documents.rollout import Deployment, RolloutDocument


def roll_back(environment: Environment, *, actor: str, reason: str) -> RolloutDocument:
    """Roll back the last deployment; one that is under way is taken over.

    All traffic returns to the fleet that had it before. That needs only the rollout document and the balancer, so it
    works when everything else is down. A rolling update is rolled back batch by batch.

    Args:
        environment: of the stack.
        actor: who rolls back, for the record.
        reason: for the record.

    Raises:
        DeliveryRefusedError: there is no deployment to roll back.
        RollbackFailedError: the balancer did not accept it, an instance could not be restored, or the restored fleet is
            not healthy.
        TakenOverError: another deployment or rollback took over.
    """
    current = current_document(environment)
    if current.deployment and current.deployment.status == "rolled-back":
        converge(environment)
    deployment = _deployment_to_roll_back(environment, current)
    run = run_for(FencedRollout.take_over(environment, current))
    try:
        return run.roll_back(f"{reason} ({actor})")
    finally:
        environment.silences.end(deployment.id)


def preview_rollback(environment: Environment) -> tuple[Deployment, bool]:
    """Return the deployment that `roll_back` would undo, and whether the fleet that gets the traffic is healthy.

    Raises:
        DeliveryRefusedError: as `roll_back` would.
        HostsError: the fleet's health is unknown.
    """
    deployment = _deployment_to_roll_back(environment, current_document(environment))
    return deployment, environment.hosts.healthy(deployment.source)


def _deployment_to_roll_back(environment: Environment, current: RolloutDocument) -> Deployment:
    deployment = current.deployment
    if deployment is None:
        raise DeliveryRefusedError("nothing to roll back: the stack has had no deployment")
    if deployment.status == "rolled-back":
        raise DeliveryRefusedError(
            f"nothing to roll back: the deployment of {deployment.version} was rolled back already, and "
            f"{deployment.source} has the traffic"
        )
    if environment.instances and deployment.strategy == "rolling" and deployment.status == "promoted":
        check_in_sync(environment.instances)
    return deployment
