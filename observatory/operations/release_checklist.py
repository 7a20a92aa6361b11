"""The checklist of a release: everything that can be known before migrations run and traffic moves. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from observatory import database
from observatory.delivery.convergence import current_document
from observatory.delivery.deployment import preview_deployment
from observatory.delivery.environment import Environment
from observatory.delivery.errors import DeliveryRefusedError
from observatory.delivery.preparation import check_installable
from observatory.delivery.releases import Manifest
from observatory.delivery.request import DeploymentRequest
from observatory.documents.rollout import Deployment
from observatory.errors import ObservatoryError
from observatory.operations.database import plan_database
from observatory.operations.migration_targets import database_target, schema_requirements
from observatory.operations.release_approvals import check_permission
from observatory.operations.stack_status import settled_status
from observatory.platforms.platform import Platform
from observatory.progress import Reporter, silent

if TYPE_CHECKING:
    from observatory.database import Plan
    from observatory.database.migrations.files import Edition, Migration


@dataclass(frozen=True, kw_only=True)
class ChecklistItem:
    """One check.

    Attributes:
        name: of what is checked.
        objection: why the release cannot be deployed; empty where the check passed.
    """

    name: str
    objection: str = ""


@dataclass(frozen=True, kw_only=True)
class ReleasePlan:
    """What `deploy_release` would do.

    Attributes:
        version: of the release.
        checklist: every check.
        schema_version: of the database now.
        migrations: that would be applied, in order.
        deployment: that would start or continue; None where the version is active, or the checks refuse it.
    """

    version: str
    checklist: tuple[ChecklistItem, ...]
    schema_version: int
    migrations: tuple[str, ...]
    deployment: Deployment | None

    @property
    def objections(self) -> tuple[str, ...]:
        """Why the release cannot be deployed; empty where it can."""
        return tuple(each.objection for each in self.checklist if each.objection)

    def as_json(self) -> dict[str, Any]:
        """Return the plan as a plain mapping."""
        return {**asdict(self), "deployment": self.deployment.model_dump() if self.deployment else None}


def plan_of(
    platform: Platform,
    manifest: Manifest,
    request: Callable[[], DeploymentRequest],
    environment: Environment,
    *,
    report: Reporter = silent,
) -> ReleasePlan:
    """Run the checklist and return the plan.

    Args:
        platform: of the stack.
        manifest: of the release, already checked.
        request: returns the request for the deployment; may refuse it.
        environment: of the deployment.
        report: gets progress.
    """
    workspace, permitted = platform.workspace, _attempt(lambda: check_permission(platform, manifest))
    plan = plan_database(workspace, report=report)
    pending = [
        each for each in _files(platform, plan.edition) if each.file in {migration.file for migration in plan.pending}
    ]
    newest = database.reached_version(
        database_target(workspace).conninfo, manifest.schema_min, pending=[each.version for each in pending]
    )
    not_ready = [each.name for each in settled_status(workspace).daemons if not each.as_declared]
    deployments: list[Deployment | None] = []
    items = (
        ChecklistItem(name="window and approval", objection=permitted),
        ChecklistItem(name="daemons", objection=f"daemons are not ready: {', '.join(not_ready)}" if not_ready else ""),
        ChecklistItem(
            name="migrations",
            objection=""
            if plan.would_succeed
            else "; ".join(plan.refusals)
            or f"the migrations would fail: {plan.rehearsal_detail}; {plan.backup_detail}",
        ),
        ChecklistItem(name="catalogue", objection=_catalogue_gap(plan, pending)),
        ChecklistItem(name="schema", objection="; ".join(_schema_gaps(platform, manifest, newest, pending))),
        ChecklistItem(
            name="deployment",
            objection=_attempt(lambda: deployments.append(_planned(environment, request(), migrated=bool(pending)))),
        ),
    )
    return ReleasePlan(
        version=manifest.version,
        checklist=items,
        schema_version=plan.version,
        migrations=tuple(each.file for each in pending),
        deployment=deployments[0] if deployments else None,
    )


def _attempt(check: Callable[[], object]) -> str:
    """Return the error of a check; empty where it passed."""
    try:
        check()
    except ObservatoryError as error:
        return str(error)
    return ""


def _files(platform: Platform, edition: Edition) -> list[Migration]:
    from observatory.database.migrations.files import read_migrations  # noqa: PLC0415 - only with a database

    return [each for each in read_migrations(platform.workspace.migrations) if each.variant in (None, edition)]


def _catalogue_gap(plan: Plan, pending: list[Migration]) -> str:
    """Return why the database could not be verified after the migrations: a rehearsal records what own ones make."""
    from observatory.database.expected_objects import uncatalogued  # noqa: PLC0415 - only with a database

    own = uncatalogued(plan.edition, pending)
    if not own or plan.rehearsal != "not rehearsed":
        return ""
    return f"the objects of {', '.join(own)} cannot be verified: {plan.rehearsal_detail}"


def _schema_gaps(platform: Platform, manifest: Manifest, newest: int, pending: list[Migration]) -> Iterator[str]:
    """Yield why the version, or one that is in use, would not work with the migrated schema."""
    from observatory.database.errors import ContractRefusedError  # noqa: PLC0415 - only with a database
    from observatory.database.migrations.expand_contract import refuse_contracts  # noqa: PLC0415
    from observatory.database.migrations.statements import parse, phase_of  # noqa: PLC0415 - loads the SQL parser

    if newest < manifest.schema_min:
        yield f"it needs schema {manifest.schema_min}, and the migrations of this checkout end at {newest}"
    for each in pending:
        if each.version > manifest.schema_max and phase_of(each.sql) == "contract":
            yield f"it supports schema {manifest.schema_max}, and {each.file} removes what it needs"
    try:
        refuse_contracts([parse(each) for each in pending], schema_requirements(platform))
    except ContractRefusedError as error:
        yield str(error)


def _planned(environment: Environment, request: DeploymentRequest, *, migrated: bool) -> Deployment | None:
    """Return the deployment, after the checks that precede one; those of the tests run later."""
    planned = preview_deployment(environment, request)
    if planned and not (request.accept_drift or current_document(environment).unfinished):
        check_installable(environment.hosts, planned.target, migrated=migrated)
    return planned


def refuse(plan: ReleasePlan) -> None:
    """Refuse a release whose checklist has objections.

    Raises:
        DeliveryRefusedError: it has.
    """
    if plan.objections:
        raise DeliveryRefusedError(
            f"{plan.version} was not deployed, nothing was changed: {'; '.join(plan.objections)}"
        )
