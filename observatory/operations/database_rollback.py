"""Rolling the database back to an earlier state, and back again.

    cover → restore beside the live data → compare → confirm → promote → exchange → agree → `up`

Owns the order, the locks, what is refused, and that ledger, rollout document, logins and fleets agree afterwards.
`observatory.backups` restores; `observatory.backups.rollback` compares and exchanges.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path

from observatory.backups.cover import Cover, find_cover
from observatory.backups.dump_manifest import CronJob
from observatory.backups.pgbackrest import PgBackRest, databases_in
from observatory.backups.restore_lock import restore_lock
from observatory.backups.restored import RestoredInstance, restored_instance
from observatory.backups.rollback.errors import RollbackRefusedError
from observatory.backups.rollback.loss import Loss, compare
from observatory.backups.rollback.record import Phase, RollbackRecord, RollbackRecords
from observatory.backups.rollback.swap import LIVE, Swap
from observatory.backups.rollback.timelines import DataDirectory
from observatory.backups.scratch import scratch_directory
from observatory.backups.target import RecoveryTarget, format_lsn
from observatory.database import DatabaseError, UnreachableError
from observatory.database.migrations.expand_contract import contracting
from observatory.database.migrations.numbering import version_in
from observatory.database.presence import Presence, presence_of
from observatory.database.roles.kept_access import KeptAccess, read_access
from observatory.documents.rollout import RolloutDocument
from observatory.operations.database_exchange import (
    COMMAND,
    continue_interrupted,
    end_agreed,
    exchange,
    explained_interruption,
    swap_of,
)
from observatory.operations.database_rollback_fit import (
    SchemaChange,
    applied_migrations,
    fitting_fleets,
    known_migrations,
    schema_change,
)
from observatory.operations.database_rollback_sources import check_dump, fill_from_dump, promote
from observatory.operations.deployment_lock import GONE_SECONDS, deployment_lock, no_migration_under_way
from observatory.operations.dropped_database import LiveDatabase, check_name, live_database
from observatory.operations.stack_outputs import required_outputs
from observatory.operations.stack_up import up
from observatory.platforms import open_platform
from observatory.platforms.errors import StackNotUpError
from observatory.platforms.platform import EngineChoice, Platform, check_supported
from observatory.progress import Reporter, silent, task, warn
from observatory.security.actor import actor
from observatory.workspace import Workspace

# For estimates, as measured on two cores: docs/benchmarks-backups.md.
COMPARED_BYTES_PER_S = 100_000_000  # of both databases at once
EXCHANGE_S = 15  # stop, exchange and start the database, then `up`
DOWN = (
    "A rollback compares with the live database, so its server must run: `observatory up` starts it. If it cannot "
    'start because its files are lost or damaged, see "A database that does not start" in docs/backups.md.'
)


@dataclass(frozen=True, kw_only=True)
class DatabaseRollbackPlan:
    """What a rollback of the database does.

    Attributes:
        database: name of the stack's database.
        target: that was given, as text.
        reached: the time of the last transaction that the restored database has; None where it is not known.
        lsn: the position in the WAL up to which it has everything; None where it is restored from a dump.
        source: the backup with its repository, or the dump.
        segments: of WAL that are replayed.
        estimated_s: of the whole rollback from this source, in seconds.
        loss: what the live database has, and the restored one lacks.
        live: what there is of the live database; the rows of one that was dropped or emptied are not in `loss`.
        schema: the versions of both, and the target of the rollout document.
    """

    database: str
    target: str
    reached: datetime | None
    lsn: str | None
    source: str
    segments: int
    estimated_s: float
    loss: Loss
    live: Presence
    schema: SchemaChange


@dataclass(frozen=True, kw_only=True)
class DatabaseUndoPlan:
    """What the undo of a rollback does: the rollback's record, and how the schema changes."""

    rollback: RollbackRecord
    schema: SchemaChange


@dataclass(frozen=True, kw_only=True)
class DatabaseRollback:
    """A finished rollback or undo: its record and the rollout document; `plan` is None if another command began it."""

    record: RollbackRecord
    rollout: RolloutDocument
    plan: DatabaseRollbackPlan | None = None


def plan_database_rollback(
    workspace: Workspace, target: RecoveryTarget | Path, *, repository: int | None = None, report: Reporter = silent
) -> DatabaseRollbackPlan:
    """Return what `roll_back_database` would do: restore beside the live data, compare, and remove what was restored.

    Raises: as `roll_back_database`; nothing is changed.
    """
    with (
        explained_interruption(workspace),
        _begun(workspace, report) as stack,
        stack.restored(target, repository) as restored,
    ):
        return restored.plan


def roll_back_database(
    workspace: Workspace,
    target: RecoveryTarget | Path,
    *,
    reason: str,
    repository: int | None = None,
    confirm: Callable[[DatabaseRollbackPlan], None] = lambda _plan: None,
    choice: EngineChoice = "auto",
    report: Reporter = silent,
) -> DatabaseRollback:
    """Replace the database by its state at a target; the live data stays beside it until it is discarded.

    A rollback to the same target whose command was killed is finished instead, once it has set the live data aside.

    Args:
        workspace: the stack's.
        target: that a backup covers; or the file of a dump, which is restored into a copy of the live server.
        reason: for the record.
        repository: number of the only repository to restore from; None: any.
        confirm: gets the plan before anything changes; what it raises ends the rollback.
        choice: of the engine that brings the stack up afterwards.
        report: gets progress.

    Raises:
        UnsupportedOperationError, StackNotUpError: the platform has no rollback, or the stack is not up.
        UnreachableError: the database's server is down; nothing was changed.
        UncoveredTargetError, NotEnoughSpaceError, DumpError, EncryptedFileError: the target cannot be restored; nothing
            was changed.
        RestoreRunningError: another restore changes the live data; nothing was changed.
        RollbackRefusedError: a deployment was interrupted, a fleet's version needs a newer schema, there was no
            database at the target, or it was renamed since; nothing was changed.
        LockHeldError: a deployment or a migration is under way; nothing was changed.
        DatabaseRollbackError: a step failed; the message says how to go on. No data was removed.
    """
    with explained_interruption(workspace), _begun(workspace, report) as stack:
        target = target.absolute() if isinstance(target, Path) else target
        if (finished := stack.continued) and finished.kind == "rollback" and finished.target == str(target):
            return stack.agreed(finished, choice)
        end_agreed(stack.platform)
        with stack.undisturbed():
            with stack.restored(target, repository) as restored:
                confirm(restored.plan)
                record = restored.promoted(reason)
            record = exchange(stack.platform, record, stack.access(), report)
        return stack.agreed(record, choice, restored.plan)


def plan_database_undo(workspace: Workspace) -> DatabaseUndoPlan:
    """Return what `undo_database_rollback` would do.

    Raises:
        RollbackRefusedError: there is none, its data was discarded or is no database or not complete, another rollback
            is under way, or a version that has traffic does not fit the schema that would come back.
        UnreachableError: the database's server is down.
    """
    platform = open_platform(workspace)
    check_supported(platform, COMMAND)
    required_outputs(platform, show_secrets=False)
    stack = _Stack(platform=platform, swap=swap_of(platform), report=silent, continued=None)
    if unfinished := stack.swap.records.unfinished():
        raise RollbackRefusedError(
            f"the {unfinished.kind} of the database {unfinished.id} is not finished; nothing was changed",
            remedy="Run the same command again, or `observatory up`: either finishes it.",
        )
    last = _undoable(stack.swap)
    return stack.plan_of_undo(last)


def undo_database_rollback(
    workspace: Workspace,
    *,
    reason: str,
    confirm: Callable[[DatabaseUndoPlan], None] = lambda _plan: None,
    choice: EngineChoice = "auto",
    report: Reporter = silent,
) -> DatabaseRollback:
    """Bring the data back that the last rollback has set aside; the data of now stays beside it.

    Raises:
        RollbackRefusedError: there is no rollback to undo, its data was discarded or is no database or not complete, or
            a version that has traffic does not fit the schema that would come back; nothing was changed.
        others: as `roll_back_database`.
    """
    with explained_interruption(workspace), _begun(workspace, report) as stack:
        if (finished := stack.continued) and finished.kind == "undo":
            return stack.agreed(finished, choice)
        end_agreed(stack.platform)
        last = _undoable(stack.swap)
        with stack.undisturbed():
            plan = stack.plan_of_undo(last)
            confirm(plan)
            record = stack.undo_of(plan, reason)
            record = exchange(stack.platform, record, stack.access(), report)
        return stack.agreed(record, choice)


@dataclass(frozen=True, kw_only=True)
class _Restored:
    """A restored database beside the live one, and the plan of the rollback to it.

    `live_timeline` is that of the live server where the restored one is promoted already, as one that is filled from a
    dump; `cron_jobs` are that dump's.
    """

    stack: _Stack
    instance: RestoredInstance
    plan: DatabaseRollbackPlan
    live_timeline: int | None = None
    cron_jobs: tuple[CronJob, ...] = ()

    def promoted(self, reason: str) -> RollbackRecord:
        """Promote the restored database, and put its files where the exchange finds them.

        Raises:
            DatabaseRollbackError: it has no timeline of its own; nothing was changed.
        """
        swap, plan, schema = self.stack.swap, self.plan, self.plan.schema
        applied, contracted = self.stack.set_aside(schema)
        live = self.live_timeline or promote(self.stack.swap, self.instance)
        self.instance.stop()
        restored = DataDirectory(self.stack.platform.workspace.sandbox, self.instance.directory.data)
        restored.check_promoted(live)
        restored.archive_later(live)
        record = RollbackRecord(
            id=swap.records.new_id(),
            kind="rollback",
            target=plan.target,
            source=plan.source,
            from_dump=self.live_timeline is not None,
            cron_jobs=self.cron_jobs,
            actor=actor(),
            reason=reason,
            at=datetime.now(UTC),
            timeline=live,
            schema_before=schema.before,
            schema_after=schema.after,
            schema_target=schema.target,
            former_target=self.stack.document.schema_target,
            applied=applied,
            contracted=contracted,
            stopped=schema.stopped,
            lost_transactions=plan.loss.transactions,
            unreadable=plan.loss.unreadable,
            lost_rows=plan.loss.rows if plan.live is Presence.WHOLE else None,
            was_dropped=plan.live is not Presence.WHOLE,
        )
        swap.take_in(self.instance.directory.host / LIVE, record)
        return record


@dataclass(frozen=True, kw_only=True)
class _Stack:
    """A stack whose database is rolled back; `continued` is the rollback of a killed command that was finished."""

    platform: Platform
    swap: Swap
    report: Reporter
    continued: RollbackRecord | None

    @property
    def document(self) -> RolloutDocument:
        """The rollout document.

        Raises:
            StackNotUpError: there is none.
        """
        if (document := self.platform.rollout_store.read()) is None:
            raise StackNotUpError(self.platform.workspace.stack)
        return document

    @cached_property
    def live(self) -> LiveDatabase:
        """The live database; raises UnreachableError, with the way to one whose server cannot start."""
        try:
            return live_database(self.platform)
        except UnreachableError as error:
            raise UnreachableError(f"{error}; nothing was changed", remedy=DOWN) from error

    def access(self) -> KeptAccess:
        """Return the roles, passwords and API keys of the live database; of one that was dropped, the roles."""
        return read_access(self.live.conninfo)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Hold the locks of deployments and of migrations inside the block."""
        conninfo, workspace = self.live.conninfo, self.platform.workspace
        with (
            deployment_lock(workspace, conninfo, command=COMMAND, wait_s=GONE_SECONDS),
            no_migration_under_way(conninfo),
        ):
            self._refuse_unfinished()
            yield

    @contextmanager
    def restored(self, target: RecoveryTarget | Path, repository: int | None) -> Iterator[_Restored]:
        """Restore beside the live data, compare, and yield both; what was restored is removed at the end."""
        sandbox, dump = self.platform.workspace.sandbox, target if isinstance(target, Path) else None
        if dump:
            check_dump(self.platform, dump)
        wanted = RecoveryTarget.latest() if isinstance(target, Path) else target
        cover = find_cover(sandbox, wanted, repository=repository)
        self.live.report(self.report)
        if self.live.lost and not dump:
            self.live.check_not_renamed_since(databases_in(PgBackRest(sandbox).node(cover.repository), cover.label))
        with (
            scratch_directory(sandbox, "rollback") as directory,
            task(
                self.report,
                f"restore {cover.label} and replay {cover.replayed} WAL segments, about {_estimate(cover):.0f} s",
            ),
            restored_instance(
                cover,
                directory=directory,
                durable=True,
                on_other=partial(warn, self.report) if repository is None else None,
            ) as instance,
        ):
            timeline = promote(self.swap, instance) if dump else None
            cron_jobs = fill_from_dump(self.platform, instance, dump, self.report).cron_jobs if dump else ()
            with task(self.report, "compare with the live database"):
                plan = self._plan(instance, dump)
            yield _Restored(stack=self, instance=instance, plan=plan, live_timeline=timeline, cron_jobs=cron_jobs)

    def _plan(self, instance: RestoredInstance, dump: Path | None) -> DatabaseRollbackPlan:
        cover = instance.cover
        live, now, replayed = self.live, self.migrations(), None if dump else instance.replayed
        _check_restored(instance, live.name, f"in {dump}" if dump else f"at {cover.target}")
        live.check_not_renamed(instance.conninfo())
        restored = instance.conninfo(live.name)
        then = applied_migrations(restored)
        change = self._change(then, contracting(restored, then.keys() - now.keys()))
        return DatabaseRollbackPlan(
            database=live.name,
            target=str(dump or cover.target),
            source=f"dump {dump}" if dump else f"backup {cover.label} in repository {cover.repository}",
            reached=replayed.last_transaction if replayed else None,
            lsn=format_lsn(replayed.lsn) if replayed else None,
            segments=cover.replayed,
            estimated_s=_estimate(cover),
            loss=compare(
                live.conninfo,
                restored,
                same_server=dump is None,
                same_timeline=self.swap.directory(LIVE).descends_from(cover.timeline, cover.stop),
            ),
            live=live.presence,
            schema=change,
        )

    def migrations(self) -> Mapping[int, str]:
        """Return the migrations of the live database, by number; where it was dropped, those that it may have had."""
        return known_migrations(self.platform) if self.live.lost else applied_migrations(self.live.conninfo)

    def set_aside(self, change: SchemaChange) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the live database's migrations, and those that its rollback undoes and that remove something."""
        if self.live.lost:
            return (), ()  # no undo brings it back
        undone = [version_in(name) for name in change.undone]
        try:
            contracted = contracting(self.live.conninfo, undone)
        except DatabaseError:  # damaged pages: the undo, which alone needs it, then takes each for one that removes
            contracted = tuple(undone)
        return tuple(self.migrations()), contracted

    def plan_of_undo(self, last: RollbackRecord) -> DatabaseUndoPlan:
        """Return what the undo of a rollback does.

        Raises:
            RollbackRefusedError: a version that has traffic does not fit the schema that would come back.
        """
        return DatabaseUndoPlan(rollback=last, schema=self._change(self._applied_before(last), last.contracted))

    def undo_of(self, plan: DatabaseUndoPlan, reason: str) -> RollbackRecord:
        """Return the record of an undo."""
        last, change = plan.rollback, plan.schema
        fitting = fitting_fleets(self.platform, self.document, self._applied_before(last), last.contracted)
        return RollbackRecord(
            id=self.swap.records.new_id(),
            kind="undo",
            target=last.id,
            source=f"the data that the rollback {last.id} has set aside",
            actor=actor(),
            reason=reason,
            at=datetime.now(UTC),
            schema_before=change.before,
            schema_after=change.after,
            schema_target=change.target if change.undone else last.former_target,
            former_target=self.document.schema_target,
            stopped=change.stopped,
            started=tuple(fleet for fleet in last.stopped if fleet in fitting),
        )

    def _applied_before(self, last: RollbackRecord) -> Collection[int]:
        """Return the migrations of the data that a rollback has set aside; those of an earlier record are not known."""
        return last.applied or [each for each in known_migrations(self.platform) if each <= last.schema_before]

    def _change(self, then: Collection[int], contracted: Collection[int]) -> SchemaChange:
        live = None if self.live.lost else self.live.conninfo
        return schema_change(
            self.platform, self.document, live=live, now=self.migrations(), then=then, contracted=contracted
        )

    def agreed(
        self, record: RollbackRecord, choice: EngineChoice, plan: DatabaseRollbackPlan | None = None
    ) -> DatabaseRollback:
        """Bring the stack up as the rollout document says, and end the rollback."""
        up(self.platform.workspace, choice=choice, report=self.report)
        end_agreed(self.platform)
        return DatabaseRollback(record=record.changed(phase=Phase.DONE), rollout=self.document, plan=plan)

    def _refuse_unfinished(self) -> None:
        if unfinished := self.document.unfinished:
            raise RollbackRefusedError(
                f"the deployment of {unfinished.version} to {unfinished.target} is {unfinished.status}; nothing was "
                "changed",
                remedy="Continue it by the same command, or undo it with `observatory rollback --method blue-green`.",
            )


@contextmanager
def _begun(workspace: Workspace, report: Reporter) -> Iterator[_Stack]:
    """Hold the lock of restores, and finish the rollback of a killed command first."""
    platform = open_platform(workspace)
    check_supported(platform, COMMAND)
    required_outputs(platform, show_secrets=False)
    if not workspace.sandbox.alive():
        raise StackNotUpError(workspace.stack)
    with restore_lock(workspace.sandbox, COMMAND):
        continued = continue_interrupted(platform, report)
        check_name(platform)
        yield _Stack(platform=platform, swap=swap_of(platform), report=report, continued=continued)


def _check_restored(instance: RestoredInstance, name: str, place: str) -> None:
    """Check that a restored server has the database with its migrations; `place` is the target, as in a sentence."""
    found = presence_of(instance.conninfo(), name)
    if found is not Presence.WHOLE:
        state = "did not exist" if found is Presence.DROPPED else "had no ledger of migrations"
        raise RollbackRefusedError(
            f"{place} the database {name!r} {state}: it was dropped, renamed or emptied before, or made later; nothing "
            "was changed",
            remedy="Choose an earlier time.",
        )


def _undoable(swap: Swap) -> RollbackRecord:
    last = _last(swap.records)
    swap.check_set_aside(last)
    return last


def _last(records: RollbackRecords) -> RollbackRecord:
    last = records.last()
    if last is None:
        raise RollbackRefusedError(
            "there is no rollback of the database to undo, or the data of before was discarded; nothing was changed"
        )
    if last.was_dropped:
        raise RollbackRefusedError(
            f"the rollback {last.id} has replaced a database that was dropped or emptied: its undo would bring that "
            "back, and no stack comes up with it; nothing was changed",
            remedy="Roll back to another time with --to-time. `observatory backup discard` removes what is set aside.",
        )
    return last


def _estimate(cover: Cover) -> float:
    return cover.estimated_s + cover.database_bytes / COMPARED_BYTES_PER_S + EXCHANGE_S
