"""Rolls back the last deployment, finished or under way."""

from __future__ import annotations

from observatory.delivery.convergence import converge, current_document, naming_traffic, traffic_shares
from observatory.delivery.environment import Environment, HostsError
from observatory.delivery.errors import DeliveryRefusedError, NothingToRollBackError
from observatory.delivery.fenced_rollout import FencedRollout
from observatory.delivery.preparation import check_in_sync
from observatory.delivery.strategies import run_for
from observatory.documents.rollout import TOTAL_WEIGHT, Deployment, RolloutDocument, RolloutError


def roll_back(
    environment: Environment, *, actor: str, reason: str, force: bool = False, only: str | None = None
) -> RolloutDocument:
    """Roll back the last deployment; one that is under way is taken over.

    All traffic returns to the fleet that had it before, and the other one is stopped. That needs only the rollout
    document, the balancer and the supervisor of the fleets, so it works when everything else is down. A rolling update
    is rolled back batch by batch.

    Args:
        environment: of the stack.
        actor: who rolls back, for the record.
        reason: for the record.
        force: roll back although no instance of the fleet that gets the traffic responds; they are restarted first.
        only: id of the deployment that is to be rolled back; None for the last one, whichever it is.

    Raises:
        DeliveryRefusedError: there is no deployment to roll back, the last one is not `only`, or no instance of the
            fleet that gets the traffic responds; nothing changed.
        RollbackFailedError: the balancer did not accept it, an instance could not be restored, or the restored fleet is
            not healthy.
        TakenOverError: another deployment or rollback took over.
    """
    with naming_traffic(environment, "restore the document, then run the command again"):
        current = current_document(environment)
    if current.deployment and current.deployment.status == "rolled-back":
        converge(environment)
    deployment = _deployment_to_roll_back(environment, current, only)
    if not force:
        _check_responds(environment, current, deployment)
    run = run_for(_taken_over(environment, current))
    try:
        return run.roll_back(f"{reason} ({actor})")
    finally:
        environment.silences.end(deployment.id)


def _taken_over(environment: Environment, current: RolloutDocument) -> FencedRollout:
    """Take over the deployment; where that cannot be written, return the traffic before the error is raised."""
    try:
        return FencedRollout.take_over(environment, current)
    except RolloutError as error:
        return run_for(FencedRollout(environment, current)).rescue(error)


def preview_rollback(environment: Environment, *, force: bool = False) -> tuple[Deployment, bool]:
    """Return the deployment that `roll_back` would undo, and whether the fleet that gets the traffic is healthy.

    Raises:
        DeliveryRefusedError: as `roll_back` would.
        HostsError: the fleet's health is unknown.
    """
    current = current_document(environment)
    deployment = _deployment_to_roll_back(environment, current)
    if not force:
        _check_responds(environment, current, deployment)
    return deployment, environment.hosts.healthy(deployment.source)


def _check_responds(environment: Environment, current: RolloutDocument, deployment: Deployment) -> None:
    """Check that the fleet that gets the traffic responds; one that has it already needs no check.

    A fleet that responds and is not ready may be waiting for what the other one holds. An unknown state refuses none.
    """
    source = deployment.source
    if current.weights[source] == TOTAL_WEIGHT:
        return
    try:
        reason = environment.hosts.silent(source)
    except HostsError:
        return
    if reason:
        raise DeliveryRefusedError(
            f"no instance of {source}, which would get all traffic, responds ({reason}); "
            f"{traffic_shares(environment)}. Run `observatory up`, which restarts them, and roll back then; or add "
            "--force, which restarts them and moves the traffic whether they respond or not"
        )


def _deployment_to_roll_back(environment: Environment, current: RolloutDocument, only: str | None = None) -> Deployment:
    deployment = current.deployment
    if deployment is None:
        raise NothingToRollBackError("nothing to roll back: the stack has had no deployment")
    if only and deployment.id != only:
        raise DeliveryRefusedError(
            f"the deployment to roll back is no longer the last one: that of {deployment.version} to "
            f"{deployment.target} is {deployment.status}"
        )
    if deployment.status == "rolled-back":
        raise NothingToRollBackError(
            f"nothing to roll back: the deployment of {deployment.version} was rolled back already, and "
            f"{deployment.source} has the traffic. To return to another version: `observatory rollback --method "
            "application --version VERSION`"
        )
    if environment.instances and deployment.strategy == "rolling" and deployment.status == "promoted":
        check_in_sync(environment.instances)
    return deployment
