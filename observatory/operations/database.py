"""Deploying migrations to a stack's database: the plan, the backup before, the deployment, and the backup alone."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from observatory import database
from observatory.backups.migration_backup import MigrationBackup
from observatory.delivery.schema_requirements import schema_needs
from observatory.engines import embedded as engine
from observatory.files import ownership
from observatory.operations.bootstrap import OperationError, engine_options
from observatory.operations.defaults import DEFAULT_RETRY
from observatory.operations.journal import take_down
from observatory.operations.locks import GONE_SECONDS, deployment_lock
from observatory.operations.state import declared_schema
from observatory.platforms.stores import release_store, rollout_store
from observatory.progress import Phase, Progress, Reporter, silent, task
from observatory.runtime import bubblewrap
from observatory.security.actor import actor
from observatory.settings import load_file
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.database import (
        Deployment,
        Edition,
        EditionPlan,
        Event,
        OnEvent,
        Plan,
        Profile,
        SchemaRequirement,
        Throwaway,
        Verification,
    )

PROGRAMS = "/usr/lib/postgresql/17/bin"  # in the root filesystem
INSIDE = "/srv"  # where a throwaway server sees its directory


@dataclass(frozen=True, kw_only=True)
class DatabaseTarget:
    """Where a stack's migrations go, as its last `up` declared it.

    Attributes:
        conninfo: as the role that owns the schema.
        roles: those that get their privileges on what migrations make, and what each of them is.
        version: the schema version wanted, which a rollback of the database sets; None is the newest.
    """

    conninfo: str
    roles: Mapping[str, Profile]
    version: int | None


def database_target(workspace: Workspace) -> DatabaseTarget:
    """Return where the stack's migrations go.

    Raises:
        OperationError: the stack has never been up, or its database is not reached from here.
    """
    found = declared_schema(workspace)
    if found is None:
        raise OperationError(
            f"the stack {workspace.stack!r} has no database yet: bring it up by `observatory up` first"
        )
    rollout = rollout_store(workspace, load_file(workspace.config_file)).read()
    return DatabaseTarget(
        conninfo=found["conninfo"],
        roles=found.get("roles", {}),
        version=rollout.schema_target if rollout else None,
    )


@dataclass(frozen=True, kw_only=True)
class DatabaseDeployment:
    """What a deployment did, and what looking at the database afterwards showed."""

    deployment: Deployment
    verification: Verification


def plan_database(
    workspace: Workspace, *, migration: str | None = None, rehearse: bool = True, report: Reporter = silent
) -> Plan:
    """Say what `deploy_database` would do; nothing is written and no lock of ours taken.

    Args:
        workspace: of the stack.
        migration: name of the one file to apply; None is all that are pending.
        rehearse: run what is pending on a throwaway server first, where one can be made.
        report: gets the progress.

    Raises:
        OperationError: the stack has never been up.
        DatabaseError: files and database contradict each other, or the database cannot be reached.
    """
    target = database_target(workspace)
    with task(report, "plan the migrations"):
        return database.plan(
            target.conninfo,
            migrations=workspace.migrations,
            target=target.version,
            only=_file_name(migration),
            backup=MigrationBackup(workspace.sandbox),
            throwaway=rehearsal_server(workspace.sandbox.rootfs) if rehearse else None,
        )


def deploy_database(
    workspace: Workspace, *, migration: str | None = None, retry: int = DEFAULT_RETRY, report: Reporter = silent
) -> DatabaseDeployment:
    """Bring the stack's database to the schema of the migration files: backup, migrations, jobs, privileges; then look.

    Args:
        workspace: of the stack.
        migration: name of the one file to apply; None is all that are pending.
        retry: how often a file is tried again while other sessions hold its locks.
        report: gets the progress.

    Raises:
        OperationError: the stack has never been up.
        LockHeldError: a deployment is under way; nothing was changed.
        DatabaseError: see `observatory.database.deploy`.
    """
    target = database_target(workspace)
    with deployment_lock(workspace, target.conninfo, wait_s=GONE_SECONDS):
        with _events_to(report) as on_event:
            done = database.deploy(
                target.conninfo,
                migrations=workspace.migrations,
                target=target.version,
                only=_file_name(migration),
                requirements=_needs(workspace),
                actor=actor(),
                deployment_id=str(uuid.uuid4()),
                backup=MigrationBackup(workspace.sandbox),
                retry=retry,
                on_event=on_event,
            )
        return _finished(workspace, target, done, report)


def plan_edition(workspace: Workspace, *, report: Reporter = silent) -> EditionPlan:
    """Say what `upgrade_edition` would do; nothing is written.

    Raises:
        OperationError: the stack has never been up.
        DatabaseError: see `observatory.database.plan_upgrade`.
    """
    target = database_target(workspace)
    with task(report, "plan the move to the community edition"):
        return database.plan_upgrade(
            target.conninfo,
            migrations=workspace.migrations,
            target=target.version,
            backup=MigrationBackup(workspace.sandbox),
        )


def upgrade_edition(
    workspace: Workspace, *, retry: int = DEFAULT_RETRY, report: Reporter = silent
) -> DatabaseDeployment:
    """Move the stack's database to the community edition's files: backup, upgrade, jobs, privileges; then look.

    Args:
        workspace: of the stack, whose server runs the community edition already.
        retry: how often it is tried again while other sessions hold its locks.
        report: gets the progress.

    Raises:
        OperationError: the stack has never been up.
        LockHeldError: a deployment is under way; nothing was changed.
        DatabaseError: see `observatory.database.upgrade_edition`.
    """
    target = database_target(workspace)
    with deployment_lock(workspace, target.conninfo, wait_s=GONE_SECONDS):
        with _events_to(report) as on_event:
            done = database.upgrade_edition(
                target.conninfo,
                migrations=workspace.migrations,
                target=target.version,
                actor=actor(),
                deployment_id=str(uuid.uuid4()),
                backup=MigrationBackup(workspace.sandbox),
                retry=retry,
                on_event=on_event,
            )
        return _finished(workspace, target, done, report)


def _finished(workspace: Workspace, target: DatabaseTarget, done: Deployment, report: Reporter) -> DatabaseDeployment:
    with task(report, "jobs, privileges, verification"):
        verification = database.finish_deployment(
            target.conninfo,
            migrations=workspace.migrations,
            target=done.version,
            roles=target.roles,
            service_conninfo=_service_conninfo(workspace),
        )
    if done.applied:
        take_down(workspace, "schema-deployed", schema=done.version, applied=done.applied, backup=done.backup_label)
    return DatabaseDeployment(deployment=done, verification=verification)


def verify_database(workspace: Workspace, *, report: Reporter = silent) -> Verification:
    """Compare the stack's database with what its migrations make, and use it as the service does.

    Raises:
        OperationError: the stack has never been up.
        DatabaseError: see `observatory.database.verify`.
    """
    target = database_target(workspace)
    with task(report, "verify"):
        return database.verify(
            target.conninfo,
            migrations=workspace.migrations,
            target=target.version,
            roles=target.roles,
            service_conninfo=_service_conninfo(workspace),
        )


def _service_conninfo(workspace: Workspace) -> str:
    return str(engine.outputs(engine_options(workspace), show_secrets=True)["database_url"])


def back_up_database(workspace: Workspace, *, report: Reporter = silent) -> str:
    """Make and verify the backup that `deploy_database` makes first, and nothing else; return its label.

    Raises:
        OperationError: the stack has never been up.
        BackupFailedError: it could not be made or verified.
    """
    database_target(workspace)
    with task(report, "backup") as at:
        return database.make_backup(MigrationBackup(workspace.sandbox), at)


def _needs(workspace: Workspace) -> list[SchemaRequirement]:
    """Return which versions of the schema the fleets' releases work with, live or kept for a rollback."""
    settings = load_file(workspace.config_file)
    rollout = rollout_store(workspace, settings).read()
    needs = schema_needs(rollout, release_store(workspace, settings)) if rollout else ()
    return [database.SchemaRequirement(*need) for need in needs]


def _file_name(migration: str | None) -> str | None:
    """A file may be given with its directory, as a shell completes it."""
    return None if migration is None else Path(migration).name


def rehearsal_server(rootfs: Path) -> Throwaway:
    """Return what makes a server to rehearse on, out of the stack's own root filesystem."""

    def wrap(command: Sequence[str], directory: Path) -> Sequence[str]:
        mounts = ("--die-with-parent", "--bind", str(directory), INSIDE)
        return bubblewrap.command(rootfs, bubblewrap.entry(rootfs), command, mounts=mounts)

    installation = database.Installation(
        programs=PROGRAMS,
        wrap=wrap,
        inside=INSIDE,
        adopt=lambda directory: ownership.change_owner(directory, bubblewrap.entry(rootfs).owner),
    )

    def make(edition: Edition) -> AbstractContextManager[str]:
        return database.throwaway_server(installation, edition=edition)

    return make


@contextmanager
def _events_to(report: Reporter) -> Iterator[OnEvent]:
    """Tell of a deployment's events: each file is a task; who is in its way is a warning, which logs show too."""

    def on_event(event: Event) -> None:
        name = event.migration or "migrations"
        if event.kind in {"waiting", "blocked", "retrying"}:
            report(Progress(task=f"{name}: {event.kind} {event.detail}", phase=Phase.WARNED))
        else:
            phase = {"applying": Phase.STARTED, "applied": Phase.DONE}.get(event.kind, Phase.MOVED)
            report(Progress(task=name, phase=phase, detail=event.detail))

    with task(report, "migrations"):
        yield on_event
