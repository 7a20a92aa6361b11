"""The standard workflow of a release: checklist, trial, backup, migrations, deployment with gates, verification.

It keeps no state. Each step reads what is already done (pending migrations, rollout document), so that a killed
workflow continues when it is called again. It holds one deployment lock throughout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Unpack

from observatory import database
from observatory.delivery.errors import (
    DeliveryRefusedError,
    NothingToRollBackError,
    RollbackFailedError,
    RolledBackError,
    TakenOverError,
)
from observatory.delivery.releases import Manifest
from observatory.delivery.request import DeploymentRequest
from observatory.documents.rollout import Deployment, RolloutDocument, Strategy
from observatory.errors import ObservatoryError
from observatory.operations.application import DeliveryOptions, request_of, run_deployment, try_release
from observatory.operations.application_rollback import roll_back_application
from observatory.operations.database import (
    DatabaseDeployment,
    back_up_database,
    deploy_database,
)
from observatory.operations.delivery_journal import open_journal
from observatory.operations.deployment_lock import deployment_lock
from observatory.operations.interrupted_delivery import explained_interruption
from observatory.operations.late_rollback import promotion_of
from observatory.operations.migration_targets import database_target
from observatory.operations.release_approvals import check_permission
from observatory.operations.release_checklist import ReleasePlan, plan_of, refuse
from observatory.operations.releases import checked_release
from observatory.operations.stack_checks import INDEPENDENT_CHECKS
from observatory.operations.stack_outputs import required_outputs
from observatory.operations.stack_status import settled_status
from observatory.operations.verification import StackVerification, verify
from observatory.platforms import open_platform
from observatory.platforms.delivery_environment import delivery_environment
from observatory.platforms.platform import EngineChoice, Platform, check_supported
from observatory.progress import Phase, Progress, Reporter, silent, task, tell
from observatory.workspace import Workspace


class MigratedDatabaseError(ObservatoryError):
    """The migrations were applied, but verification of the database failed; the service was not changed."""


@dataclass(frozen=True, kw_only=True)
class ReleaseDeployment:
    """The result of a workflow.

    Attributes:
        backup_label: of its backup; None where it continued the deployment of a killed workflow.
        applied: migrations that it applied, in order.
        rollout: the document at the end.
        verification: of the stack with the new version active.
    """

    backup_label: str | None
    applied: tuple[str, ...]
    rollout: RolloutDocument
    verification: StackVerification


def deploy_release(
    workspace: Workspace,
    *,
    version: str,
    strategy: Strategy = "blue-green",
    choice: EngineChoice = "auto",
    report: Reporter = silent,
    **options: Unpack[DeliveryOptions],
) -> ReleaseDeployment:
    """Deploy a stored release with the migrations of this checkout, from the checklist to the final verification.

    After it was killed, the same call continues. The arguments are those of `deploy_application`.

    Raises:
        OperationError: the stack is not up, or its platform is not supported.
        DeliveryRefusedError: a check of the checklist failed; nothing was changed.
        NotPermittedError, LockHeldError: see `deploy_application`; nothing was changed.
        TrialFailedError: the version failed its trial; the service was not changed.
        UnjudgedVersionError: so did the live version; the service was not changed.
        DatabaseError: a migration failed; the service was not changed.
        MigratedDatabaseError: verification of the migrated database failed; the service was not changed.
        RolledBackError: a gate, the fleet or the verification failed; the previous fleet is active.
        DeploymentPausedError: the gates had no verdict for too long; the deployment keeps its traffic weights.
        RollbackFailedError, TakenOverError: see `deploy_application`.
        KeyboardInterrupt: interrupted, and rolled back.
    """
    platform = open_platform(workspace)
    check_supported(platform, "release deploy")
    target = database_target(workspace)
    with (
        deployment_lock(workspace, target.conninfo, command=f"release deploy {version}"),
        explained_interruption(platform),  # under the lock: before, the rollout document is another command's
    ):
        manifest = checked_release(platform, version)
        prepared = _Prepared()
        if not _under_way(platform, manifest):
            with _not_taken_over(platform):
                check_permission(platform, manifest)
                with task(report, "checklist"):
                    plan = _plan(platform, manifest, strategy=strategy, options=options, report=report)
                    refuse(plan)
                prepared = _prepare(platform, manifest, plan, options, report)
        before = _fencing(platform)
        rollout = run_deployment(
            workspace, version=version, strategy=strategy, window_checked=True, choice=choice, report=report, **options
        )
        settled_status(workspace)
        verification = verify(workspace, report=report)
        new = rollout.deployment if _is_new(platform, rollout, before) else None
        _roll_back_if_wrong(platform, verification, new=new, report=report)
    return ReleaseDeployment(
        backup_label=prepared.backup_label,
        applied=prepared.applied,
        rollout=rollout,
        verification=verification,
    )


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    backup_label: str | None = None
    applied: tuple[str, ...] = ()


@contextmanager
def _not_taken_over(platform: Platform) -> Iterator[None]:
    """Stop after the block where another process deployed or rolled back: an emergency rollback takes no lock."""
    before = _fencing(platform)
    yield
    if (found := _fencing(platform)) != before:
        raise TakenOverError(
            "another process deployed or rolled back while the release was prepared (the rollout document has fencing "
            f"number {found}, expected {before}), so the service was not changed: check `observatory status` first"
        )


def _fencing(platform: Platform) -> int:
    current = platform.rollout_store.read()
    return current.fencing if current else 0


def _under_way(platform: Platform, manifest: Manifest) -> bool:
    current = platform.rollout_store.read()
    unfinished = current.unfinished if current else None
    if unfinished and unfinished.sha256 != manifest.sha256:
        raise DeliveryRefusedError(
            f"the deployment of {unfinished.version} to {unfinished.target} is {unfinished.status}: continue it, or "
            "undo it with `observatory rollback --method blue-green`"
        )
    return unfinished is not None


def plan_release(
    workspace: Workspace,
    *,
    version: str,
    strategy: Strategy = "blue-green",
    report: Reporter = silent,
    **options: Unpack[DeliveryOptions],
) -> ReleasePlan:
    """Return what `deploy_release` with these arguments would do, with its whole checklist; change nothing.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack is not up, or its platform is not supported.
        DeliveryRefusedError: the release is not stored, is damaged, or no trusted key signed it.
        DatabaseError: files and database contradict each other, or the database does not answer.
    """
    platform = open_platform(workspace)
    check_supported(platform, "release deploy")
    manifest = checked_release(platform, version)
    return _plan(platform, manifest, strategy=strategy, options=options, report=report)


def _plan(
    platform: Platform, manifest: Manifest, *, strategy: Strategy, options: DeliveryOptions, report: Reporter
) -> ReleasePlan:
    def request() -> DeploymentRequest:
        return request_of(platform, manifest, strategy=strategy, options=options, approved_by=None)

    outputs = required_outputs(platform, show_secrets=True)
    with open_journal(platform, silent) as journal:
        environment = delivery_environment(platform, outputs, journal=journal)
        return plan_of(platform, manifest, request, environment, report=report)


def _prepare(
    platform: Platform, manifest: Manifest, plan: ReleasePlan, options: DeliveryOptions, report: Reporter
) -> _Prepared:
    """Do everything that precedes a change of the service."""
    workspace = platform.workspace
    # A version that needs the migrations has its trial after them: the deployment itself runs one.
    schema = database.reached_version(database_target(workspace).conninfo, manifest.schema_min)
    if plan.migrations and not options.get("skip_tests") and schema >= manifest.schema_min:
        try_release(platform, manifest.version)
    if not plan.migrations:
        return _Prepared(backup_label=back_up_database(workspace, reuse=True, report=report))
    done = deploy_database(workspace, report=report)
    _check_migrated(done)
    return _Prepared(backup_label=done.deployment.backup_label, applied=done.deployment.applied)


def _check_migrated(done: DatabaseDeployment) -> None:
    if not done.verification.passed:
        problems = "; ".join(f"{check.name}: {check.detail}" for check in done.verification.problems)
        raise MigratedDatabaseError(
            f"applied {', '.join(done.deployment.applied)}, but the verification of the database failed ({problems}); "
            "the service was not changed: repair the database, or roll it back"
        )


def _is_new(platform: Platform, rollout: RolloutDocument, before: int) -> bool:
    """Return whether a rollback of the last deployment undoes this version, which has just become live.

    That is so if this workflow has deployed it, and if one that was killed then has, a short time ago.

    Args:
        platform: of the stack.
        rollout: the document with the version live.
        before: its fencing number before this workflow deployed the version, if it did.
    """
    if rollout.fencing != before:
        return True
    deployment = rollout.deployment
    if deployment is None or deployment.status != "promoted" or deployment.target != rollout.active_fleet:
        return False
    promoted = promotion_of(platform.workspace, deployment)
    return promoted is not None and time.time() - promoted <= platform.settings.delivery.rollback_window_seconds


def _roll_back_if_wrong(
    platform: Platform, found: StackVerification, *, new: Deployment | None, report: Reporter
) -> None:
    """Roll a new version back if a check of the verification failed; `new` is its deployment, None if it is not new.

    Unknown checks, and failures of the monitoring or the backups alone, roll nothing back. A version that has been live
    for long is not what made a check fail.

    Raises:
        RolledBackError: it was rolled back.
        RollbackFailedError: it could not be.
    """
    wrong = [check for check in found.checks if check.verdict == "failed" and check.name not in INDEPENDENT_CHECKS]
    if not wrong:
        return
    reason = "verification after the deployment: " + "; ".join(f"{each.name}: {each.detail}" for each in wrong)
    if new is None:
        warning = f"{reason}. The version was live before, so it is not rolled back"
        tell(report, Progress(task=warning, phase=Phase.WARNED))
        return
    try:
        roll_back_application(platform.workspace, reason=reason, only=new.id, report=report)
    except NothingToRollBackError as error:
        raise RolledBackError(f"{reason}; another command has rolled it back meanwhile") from error
    except DeliveryRefusedError as error:
        raise RollbackFailedError(f"{reason}; it was not rolled back: {error}") from error
    raise RolledBackError(f"rolled back: {reason}")
