"""Deploying migrations: plan, backup, deployment and verification of a stack's database, or of one without a stack."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from observatory import database
from observatory.database.excerpts import excerpt
from observatory.operations.delivery_journal import audited
from observatory.operations.deployment_lock import GONE_SECONDS, deployment_lock
from observatory.operations.migration_targets import (
    DatabaseTarget,
    MigrationTarget,
    UrlDatabase,
    database_target,
    migration_target,
)
from observatory.operations.retries import DEFAULT_RETRY
from observatory.platforms import open_platform
from observatory.progress import Phase, Progress, Reporter, silent, task, tell
from observatory.security.actor import actor
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.database import (
        Baseline,
        Deployment,
        EditionPlan,
        Event,
        HandScript,
        MigrationList,
        OnEvent,
        Plan,
        Repair,
        RepairAction,
        Verification,
    )


@dataclass(frozen=True, kw_only=True)
class DatabaseDeployment:
    """A deployment of migrations, and the verification of the database after it.

    Attributes:
        deployment: its result.
        verification: the checks of the database after it.
        notices: what PostgreSQL sent while the files ran, with severity: `009_x: WARNING: text`.
    """

    deployment: Deployment
    verification: Verification
    notices: tuple[str, ...] = ()


def plan_database(
    where: Workspace | UrlDatabase, *, migration: str | None = None, rehearse: bool = True, report: Reporter = silent
) -> Plan:
    """Return what `deploy_database` would do; write nothing and take no lock.

    Args:
        where: the stack's workspace, or a database without a stack.
        migration: name of the only file to apply; None applies all pending ones.
        rehearse: run pending migrations on a throwaway server first, where one can be started.
        report: gets the progress.

    Raises:
        MigrationFileError: `migration` is a path outside the directory of migrations.
        StackNotUpError: the stack was never up.
        DatabaseDroppedError: the stack's database is gone or empty.
        DatabaseError: files and database contradict each other, or the database does not answer.
    """
    place = migration_target(where)
    only = _file_name(place.migrations, migration)
    target = place.target()
    place.check_there()
    with task(report, "plan the migrations"):
        return database.plan(
            target.conninfo,
            migrations=place.migrations,
            only=only,
            requirements=place.requirements(),
            backup=place.backup(),
            throwaway=place.throwaway() if rehearse else None,
        )


def deploy_database(
    where: Workspace | UrlDatabase,
    *,
    migration: str | None = None,
    retry: int = DEFAULT_RETRY,
    report: Reporter = silent,
) -> DatabaseDeployment:
    """Apply migrations to a database: backup, migrations, jobs, privileges, verification.

    A database without a stack gets no backup and no privileges. Migrations that a rollback of the database has undone
    are applied again, which `up` does not do.

    Args:
        where: the stack's workspace, or a database without a stack.
        migration: name of the only file to apply; None applies all pending ones.
        retry: retries of a file while other sessions hold its locks.
        report: gets the progress.

    Raises:
        StackNotUpError: the stack was never up.
        DatabaseDroppedError: the stack's database is gone or empty; nothing was changed.
        LockHeldError: a deployment is under way; nothing was changed.
        DatabaseError: see `observatory.database.deploy`.
    """
    place = migration_target(where)
    only = _file_name(place.migrations, migration)
    target = place.target()
    place.check_there()
    with place.locked("deploy database"), ThreadPoolExecutor(1) as meanwhile:
        service_conninfo = meanwhile.submit(place.service_conninfo)  # decrypting takes as long as the deployment
        notices: list[str] = []  # a failed deployment is recorded with those that were sent until then
        with (
            place.audited_once_begun("schema-deployment", migration=migration, notices=notices) as begin,
            _poolers_reconnected(place, report) as on_change,
            _events_to(report, notices, on_change, begin) as on_event,
        ):
            done = database.deploy(
                target.conninfo,
                migrations=place.migrations,
                only=only,
                requirements=place.requirements(),
                actor=actor(),
                deployment_id=str(uuid.uuid4()),
                backup=place.backup(),
                retry=retry,
                on_event=on_event,
            )
        place.end_hold()
        return _finished(place, target, done, report, service_conninfo.result(), notices)


def list_migrations(where: Workspace | UrlDatabase) -> MigrationList:
    """Return a database's applied and pending migrations.

    Args:
        where: the stack's workspace, or a database without a stack.

    Raises:
        StackNotUpError: the stack was never up.
        DatabaseError: the database does not answer, or is unsuitable.
    """
    place = migration_target(where)
    return database.list_migrations(place.target().conninfo, migrations=place.migrations)


def plan_baseline(where: Workspace | UrlDatabase, version: int, *, report: Reporter = silent) -> Baseline:
    """Compare a database that other tools made with a version of the schema; write nothing.

    Args:
        where: the stack's workspace, or a database without a stack.
        version: number of the last migration whose objects the database has.
        report: gets the progress.

    Raises:
        StackNotUpError: the stack was never up.
        BaselineRefusedError: the database has a ledger, or the version cannot be compared.
    """
    place = migration_target(where)
    with task(report, f"compare with version {version}"):
        return database.plan_baseline(place.target().conninfo, migrations=place.migrations, version=version)


def baseline_database(where: Workspace | UrlDatabase, version: int, *, report: Reporter = silent) -> Baseline:
    """Record that a database that other tools made is at a version of the schema, after comparing it.

    Args:
        where: the stack's workspace, or a database without a stack.
        version: number of the last migration whose objects the database has.
        report: gets the progress.

    Raises:
        StackNotUpError: the stack was never up.
        LockHeldError: a deployment is under way; nothing was changed.
        BaselineRefusedError: the database has a ledger, or differs from the version; nothing was changed.
    """
    place = migration_target(where)
    with (
        place.locked("deploy database --baseline"),
        place.audited("schema-baseline", version=version),
        task(report, f"compare with version {version}, and record it"),
    ):
        found = database.record_baseline(
            place.target().conninfo,
            migrations=place.migrations,
            version=version,
            actor=actor(),
            deployment_id=str(uuid.uuid4()),
        )
    place.record_event("schema-baselined", schema=version, recorded=found.migrations)
    return found


def script_database(where: Workspace | UrlDatabase, *, migration: str | None = None) -> HandScript:
    """Return the script with which an administrator applies the pending migrations by psql; write nothing.

    Args:
        where: the stack's workspace, or a database without a stack.
        migration: name of the only file to apply; None applies all pending ones.

    Raises:
        StackNotUpError: the stack was never up.
        DatabaseError: see `observatory.database.write_script`.
    """
    place = migration_target(where)
    only = _file_name(place.migrations, migration)
    target = place.target()
    return database.write_script(
        target.conninfo,
        migrations=place.migrations,
        only=only,
        requirements=place.requirements(),
    )


def plan_repair(
    where: Workspace | UrlDatabase, action: RepairAction, file: str, *, report: Reporter = silent
) -> Repair:
    """Return what `repair_ledger` would change; write nothing and take no lock.

    Args:
        where: the stack's workspace, or a database without a stack.
        action: see `observatory.database.RepairAction`.
        file: name or path of the migration's file.
        report: gets the progress.

    Raises:
        StackNotUpError: the stack was never up.
        RepairRefusedError: the action does not fit the state of the ledger or of the files.
    """
    place = migration_target(where)
    name = _file_name(place.migrations, file) or file
    with task(report, "plan the repair"):
        return database.plan_repair(place.target().conninfo, migrations=place.migrations, action=action, file=name)


def repair_ledger(
    where: Workspace | UrlDatabase,
    action: RepairAction,
    file: str,
    *,
    reason: str,
    planned: Repair | None = None,
    report: Reporter = silent,
) -> Repair:
    """Change the ledger's row of one file, and record that in the audit.

    Args:
        where: the stack's workspace, or a database without a stack.
        action: see `observatory.database.RepairAction`.
        file: name or path of the migration's file.
        reason: why; the row and the audit keep it.
        planned: the plan that was confirmed; a repair that differs is refused. None: any plan.
        report: gets the progress.

    Raises:
        StackNotUpError: the stack was never up.
        LockHeldError: a deployment is under way; nothing was changed.
        RepairRefusedError: see `plan_repair`; nothing was changed.
    """
    place = migration_target(where)
    name = _file_name(place.migrations, file) or file
    with (
        place.locked("deploy database --repair"),
        place.audited("ledger-repair", action=action, file=name, reason=reason),
        task(report, "repair the ledger"),
    ):
        done = database.repair_ledger(
            place.target().conninfo,
            migrations=place.migrations,
            action=action,
            file=name,
            reason=reason,
            actor=actor(),
            deployment_id=str(uuid.uuid4()),
            planned=planned,
        )
    place.record_event(
        "ledger-repaired", action=action, file=done.file, reason=reason, before=done.before, after=done.after
    )
    return done


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
        with (
            audited(workspace, "edition-upgrade"),
            _poolers_reconnected(migration_target(workspace), report) as on_change,
            _events_to(report, [], on_change) as on_event,
        ):
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
        place = migration_target(workspace)
        return _finished(place, target, done, report, place.service_conninfo())


def _finished(  # noqa: PLR0917 - as they are known
    place: MigrationTarget,
    target: DatabaseTarget,
    done: Deployment,
    report: Reporter,
    service_conninfo: str,
    notices: Sequence[str] = (),
) -> DatabaseDeployment:
    with task(report, "jobs, privileges, verification"):
        verification = database.finish_deployment(
            target.conninfo,
            migrations=place.migrations,
            target=done.version,
            roles=target.roles,
            service_conninfo=service_conninfo,
            throwaway=place.throwaway(),
        )
    if done.applied:
        place.record_event(
            "schema-deployed",
            schema=done.version,
            applied=done.applied,
            backup=done.backup_label,
            notices=list(notices),
        )
    return DatabaseDeployment(deployment=done, verification=verification, notices=tuple(notices))


def verify_database(where: Workspace | UrlDatabase, *, report: Reporter = silent) -> Verification:
    """Compare a database with its migrations, and write and read a row as the service does.

    Args:
        where: the stack's workspace, or a database without a stack, whose own login writes and reads the row.
        report: gets the progress.

    Raises:
        StackNotUpError: the stack was never up.
        DatabaseError: see `observatory.database.verify`.
    """
    place = migration_target(where)
    target = place.target()
    with task(report, "verify"):
        return database.verify(
            target.conninfo,
            migrations=place.migrations,
            target=target.version,
            roles=target.roles,
            service_conninfo=place.service_conninfo(),
            throwaway=place.throwaway(),
        )


def back_up_database(workspace: Workspace, *, reuse: bool = False, report: Reporter = silent) -> str:
    """Create and verify only the backup that `deploy_database` starts with; return its label.

    With `reuse`, a backup that is younger than the setting `backups.reuse_minutes` is enough, as for migrations.

    Raises:
        StackNotUpError: the stack was never up.
        BackupFailedError: it could not be created or verified.
    """
    database_target(workspace)
    with task(report, "backup") as at:
        return database.make_backup(open_platform(workspace).migration_backup(), at, reuse=reuse)


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
def _poolers_reconnected(place: MigrationTarget, report: Reporter) -> Iterator[Callable[[], None]]:
    """Reconnect the poolers at the end if the schema changed, which the caller reports; also after an error."""
    changed = False

    def on_change() -> None:
        nonlocal changed
        changed = True

    try:
        yield on_change
    finally:
        if changed:
            for warning in place.reconnect_poolers():
                tell(report, Progress(task=warning, phase=Phase.WARNED))


@contextmanager
def _events_to(
    report: Reporter, notices: list[str], on_change: Callable[[], None], on_begin: Callable[[], None] = lambda: None
) -> Iterator[OnEvent]:
    """Report a deployment's events: each file is a task; a wait for other sessions or a notice is a warning.

    Adds the notices of PostgreSQL to `notices`. Calls `on_begin` before the backup and before each file.
    """

    def on_event(event: Event) -> None:
        if event.kind in {"backup", "applying"}:
            on_begin()
        if event.kind == "applying":  # an interrupted file may have changed something, too
            on_change()
        name = event.migration or "migrations"
        if event.kind == "finding":
            tell(report, Progress(task=event.detail, phase=Phase.WARNED))
        elif event.kind == "notice":
            notices.append(f"{name}: {event.detail}")
            tell(report, Progress(task=notices[-1], phase=Phase.WARNED))
        elif event.kind in {"waiting", "blocked", "retrying"}:
            tell(report, Progress(task=f"{name}: {event.kind} {event.detail}", phase=Phase.WARNED))
        else:
            of_files = {"applying": Phase.STARTED, "applied": Phase.DONE} if event.migration else {}
            phase = of_files.get(event.kind, Phase.MOVED)
            tell(report, Progress(task=name, phase=phase, detail=event.detail))

    with task(report, "migrations"):
        yield on_event
