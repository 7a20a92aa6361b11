"""Rolling the service back: to the previous fleet, or to any stored version."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from observatory.delivery.deployment import deploy, preview_deployment
from observatory.delivery.environment import Environment
from observatory.delivery.errors import NothingToRollBackError, RolledBackError
from observatory.delivery.preparation import check_tests
from observatory.delivery.request import DeploymentRequest
from observatory.delivery.rollback import preview_rollback, roll_back
from observatory.documents.rollout import Deployment, RolloutDocument
from observatory.interruption import interruptible
from observatory.operations.application import check_schema
from observatory.operations.delivery_journal import open_journal
from observatory.operations.deployment_lock import deployment_lock
from observatory.operations.releases import checked_release
from observatory.operations.stack_outputs import required_outputs
from observatory.platforms import open_platform
from observatory.platforms.delivery_environment import delivery_environment
from observatory.platforms.platform import EngineChoice, Platform
from observatory.progress import Reporter, silent
from observatory.security.actor import actor
from observatory.workspace import Workspace

TAKEN_OVER_SECONDS = 60.0  # until a deployment that was taken over ends: at its next evaluation, or after its `up`


def roll_back_application(
    workspace: Workspace,
    *,
    reason: str,
    emergency: bool = False,
    force: bool = False,
    only: str | None = None,
    choice: EngineChoice = "auto",
    report: Reporter = silent,
) -> RolloutDocument:
    """Undo the last deployment, taking over from it where it is running.

    Returns all traffic to the previous fleet at once, then stops the other one. That needs the rollout document, the
    balancer and the supervisor only: no database, no lock, no engine. The instances of a rolling update are restored in
    batches by the engine. Without `emergency` the audit table is written afterwards, where the database answers. With
    `force` the traffic returns although no instance of the previous fleet responds; they are restarted first. `only` is
    the id of the deployment that is to be undone: where another one is the last by now, nothing changes.

    Raises:
        DeliveryRefusedError: there is nothing to roll back, the last deployment is not `only`, or no instance of the
            previous fleet responds.
        RollbackFailedError: the balancer does not answer, an instance cannot be restored, or the fleet is not healthy.
    """
    platform = open_platform(workspace)
    outputs = required_outputs(platform, show_secrets=False)
    conninfo = None if emergency else lambda: platform.administrator(outputs)
    with open_journal(platform, report, conninfo=conninfo) as journal:
        environment = delivery_environment(platform, outputs, journal=journal, choice=choice)
        return roll_back(environment, actor=actor(), reason=reason, force=force, only=only)


def last_deployment(workspace: Workspace) -> Deployment | None:
    """Return the last deployment, finished or under way; None where there was none.

    Raises:
        RolloutError: the rollout document cannot be read.
    """
    current = open_platform(workspace).rollout_store.read()
    return current.deployment if current else None


def plan_rollback(workspace: Workspace, *, force: bool = False) -> tuple[Deployment, bool]:
    """Return the deployment that `roll_back_application` would undo, and whether the previous fleet is healthy.

    Raises:
        DeliveryRefusedError: as `roll_back_application` would.
    """
    platform = open_platform(workspace)
    outputs = required_outputs(platform, show_secrets=False)
    with open_journal(platform, silent) as journal:
        return preview_rollback(delivery_environment(platform, outputs, journal=journal), force=force)


def roll_back_to_version(
    workspace: Workspace,
    *,
    version: str,
    reason: str,
    skip_tests: bool = False,
    emergency: bool = False,
    force: bool = False,
    choice: EngineChoice = "auto",
    report: Reporter = silent,
) -> RolloutDocument:
    """Make any stored version active again, and check that it is healthy.

    A deployment that is under way is rolled back first. The version is installed on the idle fleet, exercised there,
    and gets all traffic at once. No window, approval or gate applies: metrics of an incident must not delay its end.

    Args:
        workspace: the stack's.
        version: a stored release.
        reason: for the record.
        skip_tests: skip the trial before the deployment; the rollout document and the journal record this.
        emergency: continue although the active fleet differs from what is declared, and repair it.
        force: as for `roll_back_application`, if a deployment is under way.
        choice: of the engine that installs the version.
        report: gets progress.

    Raises:
        DeliveryRefusedError: the version is not stored or does not fit the schema, the platform has no tests and they
            are not skipped, or the fleet that gets the traffic of the deployment under way does not respond; nothing
            was changed.
        TrialFailedError: the version failed its trial; nothing was changed.
        UnjudgedVersionError: so did the live version; nothing was changed.
        LockHeldError: another process holds the deployment lock and did not release it.
        RolledBackError: the version is not healthy; the version before it is active, unless the message says otherwise.
        RollbackFailedError: the deployment under way cannot be rolled back.
    """
    platform = open_platform(workspace)
    outputs = required_outputs(platform, show_secrets=True)
    conninfo = platform.administrator(outputs)
    request = _request(platform, version, conninfo, skip_tests=skip_tests, emergency=emergency)
    with (
        open_journal(platform, report, conninfo=lambda: conninfo) as journal,
        interruptible(),
    ):
        environment = delivery_environment(platform, outputs, journal=journal, choice=choice)
        check_tests(environment, request)
        if _other_under_way(environment, request):
            with contextlib.suppress(NothingToRollBackError):  # it has been rolled back meanwhile
                roll_back(environment, actor=actor(), reason=f"{reason}: back to {version}", force=force)
        command = f"rollback to {version}"
        with deployment_lock(workspace, conninfo, command=command, wait_s=TAKEN_OVER_SECONDS) as lock:
            check_schema(checked_release(platform, version), conninfo)  # again: others may have migrated meanwhile
            done = deploy(replace(environment, lock=lock), request)
    if not environment.hosts.healthy(done.active_fleet):
        raise RolledBackError(
            f"{version} is active on {done.active_fleet} but not healthy: see `observatory status -e {workspace.stack}`"
        )
    return done


def plan_rollback_to_version(
    workspace: Workspace, *, version: str, skip_tests: bool = False, emergency: bool = False, force: bool = False
) -> tuple[Deployment | None, Deployment | None]:
    """Return the deployment under way that `roll_back_to_version` would undo, and the one that it would start.

    The second is None where the version is active, and where the first must be undone before it can be planned.

    Raises:
        DeliveryRefusedError: as `roll_back_to_version` would.
    """
    platform = open_platform(workspace)
    outputs = required_outputs(platform, show_secrets=True)
    conninfo = platform.administrator(outputs)
    request = _request(platform, version, conninfo, skip_tests=skip_tests, emergency=emergency)
    with open_journal(platform, silent) as journal:
        environment = delivery_environment(platform, outputs, journal=journal)
        check_tests(environment, request)
        if _other_under_way(environment, request):
            return preview_rollback(environment, force=force)[0], None
        return None, preview_deployment(environment, request)


def _request(
    platform: Platform, version: str, conninfo: str, *, skip_tests: bool, emergency: bool = False
) -> DeploymentRequest:
    manifest = checked_release(platform, version)
    check_schema(manifest, conninfo)
    return DeploymentRequest(
        version=manifest.version,
        sha256=manifest.sha256,
        strategy="blue-green",
        gated=False,
        bake_s=0,
        actor=actor(),
        accept_drift=True,
        skip_tests=skip_tests,
        emergency=emergency,
    )


def _other_under_way(environment: Environment, request: DeploymentRequest) -> bool:
    """Return whether another deployment is under way; one with the same request was killed and continues."""
    current = environment.store.read()
    found = current.unfinished if current else None
    return found is not None and (found.sha256, found.gated) != (request.sha256, request.gated)
