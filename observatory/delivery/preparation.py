"""What comes before a deployment starts: the checks that refuse it, and the pre-deployment tests. Changes nothing."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from observatory.delivery.convergence import check_drift
from observatory.delivery.environment import Environment, Hosts, HostsError, Instances, UnjudgedError
from observatory.delivery.errors import DeliveryRefusedError, TrialFailedError, UnjudgedVersionError
from observatory.delivery.patience import patiently
from observatory.delivery.request import DeploymentRequest
from observatory.documents.rollout import Deployment, RolloutDocument, other
from observatory.settings import FleetName


def is_deployed(current: RolloutDocument, request: DeploymentRequest) -> bool:
    """Return whether the requested version is live already and no deployment is under way."""
    if current.unfinished:
        return False
    if request.strategy == "rolling":
        return current.fleet(request.target or current.active_fleet).sha256 == request.sha256
    return current.fleet(current.active_fleet).sha256 == request.sha256 and request.target is None


def check_no_other_deployment(current: RolloutDocument, request: DeploymentRequest) -> None:
    """Check that no deployment of another version is under way.

    Raises:
        DeliveryRefusedError: one is.
    """
    unfinished = current.unfinished
    if unfinished and (unfinished.version, unfinished.sha256) != (request.version, request.sha256):
        raise DeliveryRefusedError(
            f"the deployment of {unfinished.version} to {unfinished.target} is {unfinished.status}: continue it with "
            f"`observatory deploy application --version {unfinished.version} --strategy {unfinished.strategy}`, or "
            "undo it with `observatory rollback --method blue-green`"
        )


def check_in_sync(instances: Instances) -> None:
    """Check that the stack matches its settings, so that replacing instances changes nothing else.

    Raises:
        DeliveryRefusedError: it does not.
    """
    with _refused():
        instances.check()


def check_installable(hosts: Hosts, fleet: FleetName, *, migrated: bool = False) -> None:
    """Check that the stack matches its settings apart from a fleet, so that installing a version changes only that one.

    Raises:
        DeliveryRefusedError: it does not, for example after an upgrade of the checkout and before `up`.
    """
    with _refused():
        hosts.check(fleet, migrated=migrated)


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except HostsError as error:
        raise DeliveryRefusedError(str(error)) from error


def check_tests(environment: Environment, request: DeploymentRequest) -> None:
    """Check that the pre-deployment tests can run, or are to be skipped.

    Raises:
        DeliveryRefusedError: the platform has none.
    """
    if not (request.skip_tests or environment.trial):
        raise DeliveryRefusedError(
            f"{request.version}: this platform has no pre-deployment tests; deploy with --skip-tests, roll back with "
            "--emergency"
        )


def prepare(environment: Environment, current: RolloutDocument, request: DeploymentRequest) -> Deployment:
    """Return the deployment to start, after every check that needs no test run.

    Raises:
        DeliveryRefusedError: a check failed.
        BalancerError: the balancer cannot be read.
    """
    rolling = request.strategy == "rolling"
    source, target = _fleets(current, request)
    if rolling:
        _check_batch(environment, current, target, request.batch_size)
    check_drift(environment, current, accept=request.accept_drift)
    check_tests(environment, request)
    return Deployment(
        id=uuid.uuid4().hex[:12],
        version=request.version,
        sha256=request.sha256,
        strategy=request.strategy,
        source=source,
        target=target,
        weights=() if rolling else request.weights,
        batch_size=request.batch_size if rolling else None,
        gated=request.gated,
        bake_s=request.bake_s,
        health_check_s=request.health_check_s,
        actor=request.actor,
        approved_by=request.approved_by,
        started=environment.clock.wall(),
        emergency=request.emergency,
        before=current.fleet(target),
    )


def run_tests(environment: Environment, deployment: Deployment, *, skip: bool) -> Literal["passed", "skipped"]:
    """Run the pre-deployment tests, unless they are to be skipped; record and return the result.

    Raises:
        TrialFailedError: the version failed; nothing changed.
        UnjudgedVersionError: the live version fails, too; nothing changed.
    """

    def record(event: str, **details: str) -> None:
        environment.journal.record(event, deployment=deployment.id, version=deployment.version, **details)

    if skip:
        record("tests-skipped")
        return "skipped"
    try_version(environment, deployment.target, deployment.version, record)
    return "passed"


def try_version(environment: Environment, fleet: FleetName, version: str, record: Callable[..., None]) -> None:
    """Run the pre-deployment tests of a version as an instance of a fleet, and record the result.

    While the live fleet fails them, too, they are repeated, for the gates' `deadline_s`.

    Raises:
        TrialFailedError: the version failed; nothing changed.
        UnjudgedVersionError: the live version fails, too; nothing changed.
    """
    trial = environment.trial
    assert trial is not None  # noqa: S101 - the caller has checked it
    try:
        unchecked = patiently(environment, lambda: trial.test(fleet, version), record)
    except UnjudgedError as error:
        record("tests-unjudged", reason=str(error))
        raise UnjudgedVersionError(
            f"{version} was not tested to the end, no fleet was changed: {error}, and run the command again"
        ) from error
    except HostsError as error:
        record("tests-failed", reason=str(error))
        raise TrialFailedError(f"{version} failed its pre-deployment tests, no fleet was changed: {error}") from error
    record("tests-passed", unchecked=list(unchecked))


def _fleets(current: RolloutDocument, request: DeploymentRequest) -> tuple[FleetName, FleetName]:
    """Return the fleet that has the traffic after a rollback, and the one that gets the version."""
    active = current.active_fleet
    if request.strategy == "rolling":
        return request.target or active, request.target or active
    if request.target == active:
        raise DeliveryRefusedError(f"{active} is the active fleet: deploy to the idle fleet, {other(active)}")
    return active, other(active)


def _check_batch(environment: Environment, current: RolloutDocument, fleet: FleetName, batch: int) -> None:
    """Check that a fleet can take its traffic without a batch of its instances."""
    if environment.instances is None:
        raise DeliveryRefusedError("this platform has no rolling updates: use --strategy blue-green")
    size = len(environment.instances.names(fleet))
    if size == 1:
        raise DeliveryRefusedError(
            f"no idle capacity: {fleet} has one instance, and a rolling update drains at least one. Raise fleets.size "
            "and run `observatory up`, or use --strategy blue-green"
        )
    if not 1 <= batch < size:
        raise DeliveryRefusedError(
            f"batch size is {batch}, expected a number between 1 and {size - 1}: {fleet} has {size} instances"
        )
    if current.fleet(fleet).stopped:
        raise DeliveryRefusedError(
            f"a rollback has stopped {fleet}: a rolling update needs running instances, use --strategy blue-green"
        )
    if not environment.hosts.healthy(fleet):
        raise DeliveryRefusedError(
            f"{fleet} has instances that are not ready: `observatory status` shows them, `observatory up` repairs them"
        )
    check_in_sync(environment.instances)
