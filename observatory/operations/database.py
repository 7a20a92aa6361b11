"""Deploying migrations to a stack's database: plan, backup, deployment and verification."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from observatory import database
from observatory.database.excerpts import excerpt
from observatory.delivery.schema_requirements import schema_needs
from observatory.operations.delivery_journal import audited, record_event
from observatory.operations.deployment_lock import GONE_SECONDS, deployment_lock
from observatory.operations.retries import DEFAULT_RETRY
from observatory.platforms import open_platform
from observatory.platforms.errors import StackNotUpError
from observatory.platforms.platform import Platform
from observatory.platforms.rehearsal import rehearsal_server
from observatory.platforms.stack_state import declared_schema, outputs
from observatory.progress import Phase, Progress, Reporter, silent, task
from observatory.security.actor import actor
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.database import (
        Deployment,
        EditionPlan,
        Event,
        OnEvent,
        Plan,
        Profile,
        SchemaRequirement,
        Verification,
    )


@dataclass(frozen=True, kw_only=True)
class DatabaseTarget:
    """The database of a stack's migrations, as its last `up` declared it.

    Attributes:
        conninfo: connection string of the role that owns the schema.
        roles: the profiles of the roles that get privileges on what migrations create.
        version: the target version of the schema, which a rollback of the database sets; None is the newest.
    """

    conninfo: str
    roles: Mapping[str, Profile]
    version: int | None


def database_target(workspace: Workspace) -> DatabaseTarget:
    """Return the database of the stack's migrations.

    Raises:
        StackNotUpError: the stack was never up.
    """
    platform = open_platform(workspace)
    found = declared_schema(platform)
    if found is None:
        raise StackNotUpError(workspace.stack)
    rollout = platform.rollout_store.read()
    return DatabaseTarget(
        conninfo=found["conninfo"],
        roles=found.get("roles", {}),
        version=rollout.schema_target if rollout else None,
    )


@dataclass(frozen=True, kw_only=True)
class DatabaseDeployment:
    """A deployment of migrations, and the verification of the database after it."""

    deployment: Deployment
    verification: Verification


def plan_database(
    workspace: Workspace, *, migration: str | None = None, rehearse: bool = True, report: Reporter = silent
) -> Plan:
    """Return what `deploy_database` would do; write nothing and take no lock.

    Args:
        workspace: of the stack.
        migration: name of the only file to apply; None applies all pending ones.
        rehearse: run pending migrations on a throwaway server first, where one can be started.
        report: gets the progress.

    Raises:
        MigrationFileError: `migration` is a path outside the directory of migrations.
        StackNotUpError: the stack was never up.
        DatabaseError: files and database contradict each other, or the database does not answer.
    """
    only = _file_name(workspace.migrations, migration)
    target = database_target(workspace)
    with task(report, "plan the migrations"):
        return database.plan(
            target.conninfo,
            migrations=workspace.migrations,
            target=target.version,
            only=only,
            backup=open_platform(workspace).migration_backup(),
            throwaway=rehearsal_server(workspace.sandbox.rootfs) if rehearse else None,
        )


def deploy_database(
    workspace: Workspace, *, migration: str | None = None, retry: int = DEFAULT_RETRY, report: Reporter = silent
) -> DatabaseDeployment:
    """Apply migrations to the stack's database: backup, migrations, jobs, privileges, verification.

    Args:
        workspace: of the stack.
        migration: name of the only file to apply; None applies all pending ones.
        retry: retries of a file while other sessions hold its locks.
        report: gets the progress.

    Raises:
        StackNotUpError: the stack was never up.
        LockHeldError: a deployment is under way; nothing was changed.
        DatabaseError: see `observatory.database.deploy`.
    """
    only = _file_name(workspace.migrations, migration)
    target = database_target(workspace)
    with deployment_lock(workspace, target.conninfo, command="deploy database", wait_s=GONE_SECONDS):
        with audited(workspace, "schema-deployment", migration=migration), _events_to(report) as on_event:
            done = database.deploy(
                target.conninfo,
                migrations=workspace.migrations,
                target=target.version,
                only=only,
                requirements=schema_requirements(open_platform(workspace)),
                actor=actor(),
                deployment_id=str(uuid.uuid4()),
                backup=open_platform(workspace).migration_backup(),
                retry=retry,
                on_event=on_event,
            )
        return _finished(workspace, target, done, report)


def plan_edition(workspace: Workspace, *, report: Reporter = silent) -> EditionPlan:
    """Return what `upgrade_edition` would do; write nothing.

    Raises:
        StackNotUpError: the stack was never up.
        DatabaseError: see `observatory.database.plan_upgrade`.
    """
    target = database_target(workspace)
    with task(report, "plan the upgrade to the community edition"):
        return database.plan_upgrade(
            target.conninfo,
            migrations=workspace.migrations,
            target=target.version,
            backup=open_platform(workspace).migration_backup(),
        )


def upgrade_edition(
    workspace: Workspace, *, retry: int = DEFAULT_RETRY, report: Reporter = silent
) -> DatabaseDeployment:
    """Upgrade the stack's database to the community edition: backup, upgrade, jobs, privileges, verification.

    Args:
        workspace: of the stack, whose server already runs the community edition.
        retry: retries while other sessions hold its locks.
        report: gets the progress.

    Raises:
        StackNotUpError: the stack was never up.
        LockHeldError: a deployment is under way; nothing was changed.
        DatabaseError: see `observatory.database.upgrade_edition`.
    """
    target = database_target(workspace)
    with deployment_lock(workspace, target.conninfo, command="deploy database", wait_s=GONE_SECONDS):
        with audited(workspace, "edition-upgrade"), _events_to(report) as on_event:
            done = database.upgrade_edition(
                target.conninfo,
                migrations=workspace.migrations,
                target=target.version,
                actor=actor(),
                deployment_id=str(uuid.uuid4()),
                backup=open_platform(workspace).migration_backup(),
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
            service_conninfo=_service_conninfo(open_platform(workspace)),
        )
    if done.applied:
        record_event(workspace, "schema-deployed", schema=done.version, applied=done.applied, backup=done.backup_label)
    return DatabaseDeployment(deployment=done, verification=verification)


def verify_database(workspace: Workspace, *, report: Reporter = silent) -> Verification:
    """Compare the stack's database with its migrations, and write and read a row as the service does.

    Raises:
        StackNotUpError: the stack was never up.
        DatabaseError: see `observatory.database.verify`.
    """
    target = database_target(workspace)
    with task(report, "verify"):
        return database.verify(
            target.conninfo,
            migrations=workspace.migrations,
            target=target.version,
            roles=target.roles,
            service_conninfo=_service_conninfo(open_platform(workspace)),
        )


def _service_conninfo(platform: Platform) -> str:
    return str(outputs(platform, show_secrets=True)["database_url"])


def back_up_database(workspace: Workspace, *, report: Reporter = silent) -> str:
    """Create and verify only the backup that `deploy_database` starts with; return its label.

    Raises:
        StackNotUpError: the stack was never up.
        BackupFailedError: it could not be created or verified.
    """
    database_target(workspace)
    with task(report, "backup") as at:
        return database.make_backup(open_platform(workspace).migration_backup(), at)


def schema_requirements(platform: Platform) -> list[SchemaRequirement]:
    """Return the schema versions that the releases of both fleets work with, also those kept for a rollback."""
    rollout = platform.rollout_store.read()
    needs = schema_needs(rollout, platform.release_store) if rollout else ()
    return [database.SchemaRequirement(*need) for need in needs]


def _file_name(directory: Path, migration: str | None) -> str | None:
    """Return a file's name; a shell completes it with its directory.

    Raises:
        MigrationFileError: the path is in another directory, where a file of the same name may have another text.
    """
    if migration is None or Path(migration).name == migration:
        return migration
    if os.path.realpath(Path(migration).parent) != os.path.realpath(
        directory
    ):  # Path.resolve raises at a loop of links
        raise database.MigrationFileError(
            f"{excerpt(migration)}: is not in {directory}, the directory of migrations. Move the file there, or name "
            "one that is there"
        )
    return Path(migration).name


@contextmanager
def _events_to(report: Reporter) -> Iterator[OnEvent]:
    """Report a deployment's events: each file is a task; a wait for other sessions is a warning."""

    def on_event(event: Event) -> None:
        name = event.migration or "migrations"
        if event.kind in {"waiting", "blocked", "retrying"}:
            report(Progress(task=f"{name}: {event.kind} {event.detail}", phase=Phase.WARNED))
        else:
            phase = {"applying": Phase.STARTED, "applied": Phase.DONE}.get(event.kind, Phase.MOVED)
            report(Progress(task=name, phase=phase, detail=event.detail))

    with task(report, "migrations"):
        yield on_event
