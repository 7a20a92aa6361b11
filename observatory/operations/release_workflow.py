"""The standard workflow of a release: checklist, tests, backup, migrations, deployment under gates, verification.

Keeps no state of its own. Every step finds out by itself what is done already (what is pending, what the rollout
document says), so that a workflow that was killed goes on when it is called again. One deployment lock is held over all
of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from observatory.delivery.errors import DeliveryRefusedError, RolledBackError, TakenOverError
from observatory.delivery.releases import Manifest
from observatory.documents.rollout import RolloutDocument, Strategy
from observatory.errors import ObservatoryError
from observatory.operations.bootstrap import OperationError
from observatory.operations.database import (
    DatabaseDeployment,
    back_up_database,
    database_target,
    deploy_database,
    plan_database,
)
from observatory.operations.delivery import (
    checked_release,
    deploy_application,
    roll_back_application,
    try_release,
)
from observatory.operations.engine_choice import EngineChoice
from observatory.operations.locks import deployment_lock
from observatory.operations.permission import permission
from observatory.operations.stack import settled_status
from observatory.operations.verification import MONITORING, StackVerification, verify
from observatory.progress import Reporter, silent, task
from observatory.settings import load_file
from observatory.workspace import Workspace


class MigratedDatabaseError(ObservatoryError):
    """The migrations are in, and the database is not as they make it; the service was not touched."""


@dataclass(frozen=True, kw_only=True)
class ReleaseDeployment:
    """What a workflow did.

    Attributes:
        backup_label: of the backup made first; None where the deployment of a killed workflow went on.
        applied: migrations that it applied, in order.
        rollout: the document at the end.
        verification: of the stack, with the version serving.
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
    canary_percentage: int | None = None,
    bake_seconds: float | None = None,
    skip_tests: bool = False,
    approved_by: str | None = None,
    choice: EngineChoice = "auto",
    report: Reporter = silent,
) -> ReleaseDeployment:
    """Bring a kept release, with the migrations of this checkout, from the checklist to the verification afterwards.

    Called again after it was killed, it goes on where it was. The arguments are those of `deploy_application`.

    Raises:
        OperationError: the stack is not up, or not one of this machine.
        DeliveryRefusedError: something on the checklist; nothing was changed.
        NotPermittedError, LockHeldError: so too.
        TrialFailedError: the version fails when it is tried; the service was not touched.
        DatabaseError: a migration failed; the service was not touched.
        MigratedDatabaseError: the database is not as the migrations make it; the service was not touched.
        RolledBackError: a gate, the fleet or the verification said no; the old fleet serves.
        RollbackFailedError, TakenOverError: see `deploy_application`.
        KeyboardInterrupt: interrupted, and rolled back.
    """
    if load_file(workspace.config_file).platform != "local":
        raise OperationError(
            f"the workflow looks at processes of this machine, and the stack {workspace.stack!r} has none: use "
            "`observatory deploy database`, then `observatory deploy application`"
        )
    target = database_target(workspace)
    with deployment_lock(workspace, target.conninfo):
        manifest = checked_release(workspace, version)
        prepared = _Prepared()
        if not _under_way(workspace, manifest):
            with _not_taken_over(workspace):
                prepared = _prepare(workspace, manifest, skip_tests=skip_tests, approved_by=approved_by, report=report)
        rollout = deploy_application(
            workspace,
            version=version,
            strategy=strategy,
            canary_percentage=canary_percentage,
            bake_seconds=bake_seconds,
            skip_tests=skip_tests,
            approved_by=approved_by,
            choice=choice,
            report=report,
        )
        verification = _verify(workspace, report)
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
def _not_taken_over(workspace: Workspace) -> Iterator[None]:
    """Stop after the block where somebody deployed or rolled back meanwhile: an emergency asks for no lock."""
    before = _fencing(workspace)
    yield
    if (found := _fencing(workspace)) != before:
        raise TakenOverError(
            f"taken over: somebody deployed or rolled back while the release was prepared (fencing number {found}, it "
            f"was {before}), so the service was not touched; look at `observatory status` before you go on"
        )


def _fencing(workspace: Workspace) -> int:
    current = workspace.rollout.read()
    return current.fencing if current else 0


def _under_way(workspace: Workspace, manifest: Manifest) -> bool:
    current = workspace.rollout.read()
    unfinished = current.unfinished if current else None
    if unfinished and unfinished.sha256 != manifest.sha256:
        raise DeliveryRefusedError(
            f"the deployment of {unfinished.version} to {unfinished.target} is {unfinished.status}: go on with it, or "
            "undo it by `observatory rollback --method blue-green`"
        )
    return unfinished is not None


def _prepare(
    workspace: Workspace, manifest: Manifest, *, skip_tests: bool, approved_by: str | None, report: Reporter
) -> _Prepared:
    """Do everything that comes before the service is touched."""
    permission(workspace, load_file(workspace.config_file), manifest, approved_by=approved_by)
    with task(report, "checklist"):
        version, pending = _checklist(workspace, manifest, report)
    # A version that needs the migrations is tried after them, by the deployment itself, which tries every version.
    if pending and not skip_tests and version >= manifest.schema_min:
        try_release(workspace, manifest.version)
    if not pending:
        return _Prepared(backup_label=back_up_database(workspace, report=report))
    done = deploy_database(workspace, report=report)
    _must_be_as_migrated(done)
    return _Prepared(backup_label=done.deployment.backup_label, applied=done.deployment.applied)


def _checklist(workspace: Workspace, manifest: Manifest, report: Reporter) -> tuple[int, tuple[str, ...]]:
    """Return the schema's version and the pending migrations, where nothing stands in the way."""
    plan = plan_database(workspace, report=report)
    pending = tuple(migration.file for migration in plan.pending)
    newest = max((migration.version for migration in plan.pending), default=plan.version)
    ill = [daemon.name for daemon in settled_status(workspace).daemons if daemon.health != "ready"]
    objections = [
        f"not ready: {', '.join(ill)}" if ill else "",
        "" if plan.would_succeed else f"the migrations would fail: {plan.rehearsal_detail}; {plan.backup_detail}",
        f"it needs schema {manifest.schema_min}, and the migrations here end at {newest}"
        if newest < manifest.schema_min
        else "",
    ]
    if found := [objection for objection in objections if objection]:
        raise DeliveryRefusedError(f"{manifest.version} is not deployed, nothing was changed: {'; '.join(found)}")
    return plan.version, pending


def _must_be_as_migrated(done: DatabaseDeployment) -> None:
    if not done.verification.passed:
        problems = "; ".join(f"{check.name}: {check.detail}" for check in done.verification.problems)
        raise MigratedDatabaseError(
            f"applied {', '.join(done.deployment.applied)}, and the database is not as it should be ({problems}): the "
            "service was not touched; find out why, or roll the database back"
        )


def _verify(workspace: Workspace, report: Reporter) -> StackVerification:
    """Look once more when the version has all the traffic, and give that back where something is wrong with it.

    What could not be looked at, or is wrong with the monitoring alone, is told and moves nobody's traffic.
    """
    settled_status(workspace)
    found = verify(workspace, report=report)
    wrong = [check for check in found.checks if check.verdict == "failed" and check.name != MONITORING]
    if wrong:
        reason = "verification after the deployment: " + "; ".join(f"{each.name}: {each.detail}" for each in wrong)
        roll_back_application(workspace, reason=reason, report=report)
        raise RolledBackError(f"rolled back: {reason}")
    return found
