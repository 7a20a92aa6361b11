"""Deploys a version: refuse or test it first, then install, verify and shift traffic under gates, then promote.

Any error rolls back. A deployment whose process was killed continues when it is requested again.
"""

from __future__ import annotations

from observatory.delivery.convergence import current_document
from observatory.delivery.environment import Environment
from observatory.delivery.fenced_rollout import FencedRollout
from observatory.delivery.preparation import (
    check_installable,
    check_no_other_deployment,
    is_deployed,
    prepare,
    run_tests,
)
from observatory.delivery.request import DeploymentRequest
from observatory.delivery.strategies import run_for
from observatory.documents.rollout import Deployment, Rolling, RolloutDocument

START_FIELDS = {"version", "sha256", "strategy", "source", "target", "weights", "batch_size", "bake_s", "approved_by"}


def deploy(environment: Environment, request: DeploymentRequest) -> RolloutDocument:
    """Deploy a version, or continue its interrupted deployment; return the rollout document at the end.

    Raises:
        DeliveryRefusedError: the deployment did not start, nothing changed.
        TrialFailedError: the version failed its pre-deployment tests, nothing changed.
        BalancerError: the balancer cannot be read, nothing changed.
        RolledBackError: a gate, the fleet, an alert or an operator stopped it; the previous version has the traffic.
        RollbackFailedError: as above, and the rollback failed.
        TakenOverError: another deployment or rollback took over.
        KeyboardInterrupt: interrupted, and rolled back.
    """
    current = current_document(environment)
    if is_deployed(current, request):
        return current
    check_no_other_deployment(current, request)
    changed = current if current.unfinished else _prepared(environment, current, request)
    try:
        return _run(environment, current, changed)
    except KeyboardInterrupt:
        _undo_begun(environment, current, changed)
        raise


def _run(environment: Environment, current: RolloutDocument, changed: RolloutDocument) -> RolloutDocument:
    """Write the deployment that `changed` has, or take it over where `current` has it, and run it to its end."""
    rollout = FencedRollout.start(environment, current, changed)
    if not current.unfinished:
        rollout.record("start", **rollout.deployment.model_dump(include=START_FIELDS, exclude_none=True))
    return run_for(rollout).run()


def _undo_begun(environment: Environment, current: RolloutDocument, changed: RolloutDocument) -> None:
    """Roll back what an interrupt has met after the deployment was written and before its run could roll back.

    A deployment that was not written, has ended, is being rolled back, or was taken over is left as it is.
    """
    written, begun = current_document(environment), changed.deployment
    found = written.unfinished
    if found is None or begun is None or found.id != begun.id or found.status == "rolling-back":
        return
    if written.fencing == current.fencing + 1:
        run_for(FencedRollout(environment, written)).roll_back("interrupted")
        environment.silences.end(found.id)


def preview_deployment(environment: Environment, request: DeploymentRequest) -> Deployment | None:
    """Return the deployment that `deploy` would start or continue, None where the version is live; change nothing.

    Raises:
        DeliveryRefusedError: as `deploy` would.
        BalancerError: the balancer cannot be read.
    """
    current = current_document(environment)
    if is_deployed(current, request):
        return None
    check_no_other_deployment(current, request)
    return current.unfinished or prepare(environment, current, request)


def _prepared(environment: Environment, current: RolloutDocument, request: DeploymentRequest) -> RolloutDocument:
    """Test the version, and return the document with its deployment, which is to be written."""
    prepared = prepare(environment, current, request)
    if not (request.strategy == "rolling" or request.accept_drift):  # rolling: `prepare` has checked all instances
        check_installable(environment.hosts, prepared.target)
    tests = run_tests(environment, prepared, skip=request.skip_tests)
    return _with_deployment(current, prepared.model_copy(update={"tests": tests}))


def _with_deployment(current: RolloutDocument, deployment: Deployment) -> RolloutDocument:
    """Return the document at the start of a deployment: the target has the version, and no traffic unless rolling."""
    target, version, sha256 = deployment.target, deployment.version, deployment.sha256
    if deployment.strategy == "rolling":
        changed = current.with_fleet(target, rolling=Rolling(version=version, sha256=sha256))
    else:
        changed = current.with_weight(target, 0).with_fleet(target, version=version, sha256=sha256, stopped=())
    return changed.model_copy(update={"deployment": deployment})
