"""The exchange of a stack's database as an operation: its locks, its continuation after a kill, and the agreement.

Owns what `up` and a rollback of the database share. `observatory.backups.rollback` owns the steps. An exchange that is
agreed on ends only when the stack is up again, so that a command which is killed before continues the same rollback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

from psycopg.conninfo import conninfo_to_dict

from observatory.backups.restore_lock import restore_lock
from observatory.backups.rollback.record import Phase, RollbackRecord, RollbackRecords
from observatory.backups.rollback.swap import Swap
from observatory.database import ensure_database, grant_access, schedule_jobs
from observatory.database.connection import with_database
from observatory.database.roles.kept_access import KeptAccess
from observatory.interruption import handle_stop_signals
from observatory.nodes.storage import labelled
from observatory.operations.delivery_journal import record_event
from observatory.operations.dropped_database import declared_name
from observatory.operations.stack_monitoring import stack_alertmanager
from observatory.platforms.alertmanager import FleetSilences
from observatory.platforms.platform import Platform
from observatory.platforms.stack_state import declared_schema, outputs
from observatory.progress import Phase as Progressing
from observatory.progress import Progress, Reporter, task, tell
from observatory.settings import FleetName, LocalSettings
from observatory.workspace import Workspace

CLIENTS_WAIT = "StoragePoolExhausted"
COMMAND: Literal["rollback --method database"] = "rollback --method database"


def records_of(workspace: Workspace) -> RollbackRecords:
    """Return the records of a stack's rollbacks of the database."""
    return RollbackRecords(workspace.home)


def swap_of(platform: Platform) -> Swap:
    """Return what exchanges the data of a stack on this machine."""
    settings = platform.settings
    assert isinstance(settings, LocalSettings)  # noqa: S101 - other platforms do not offer it
    administrator = with_database(str(outputs(platform)["admin_database_url"]), declared_name(platform))
    return Swap(
        sandbox=platform.workspace.sandbox,
        settings=settings,
        records=records_of(platform.workspace),
        administrator=administrator,
    )


def finish_interrupted(platform: Platform, report: Reporter) -> RollbackRecord | None:
    """Finish the exchange of a killed command, or give it up if the live data is still in its place.

    Returns:
        The record that was finished, None where there is none; its rollout document is agreed on, and `end_agreed` ends
        it when the stack is up.

    Raises:
        RestoreRunningError: the command still runs.
        DatabaseRollbackError: a step failed.
    """
    records = records_of(platform.workspace)
    unfinished = records.unfinished()
    if (unfinished is None or unfinished.phase is Phase.UP) and not records.left_over():
        return None
    with restore_lock(platform.workspace.sandbox, COMMAND):
        return continue_interrupted(platform, report)


def continue_interrupted(platform: Platform, report: Reporter) -> RollbackRecord | None:
    """As `finish_interrupted`, for a caller that holds the lock."""
    swap = swap_of(platform)
    swap.remove_left_over()
    record = swap.records.unfinished()
    if record is None:
        return None
    if record.phase is Phase.STOP:
        with task(report, f"give up the interrupted {record.kind} of the database {record.id}"):
            swap.abandon(record)
        return None
    if record.phase is Phase.UP:
        return record
    with (
        _uninterrupted(report),
        task(report, f"finish the interrupted {record.kind} of the database {record.id}"),
        _announced(platform, record, report),
    ):
        return agree(platform, swap, swap.finish(record))


@contextmanager
def explained_interruption(workspace: Workspace) -> Iterator[None]:
    """Add to a KeyboardInterrupt of the block a note that says whether the database was exchanged."""
    records = records_of(workspace)
    before = {each.id for each in records.all() if each.exchanged}
    try:
        yield
    except KeyboardInterrupt as interrupt:
        done = next((each for each in records.all() if each.exchanged and each.id not in before), None)
        interrupt.add_note(
            f"the {done.kind} of the database {done.id} is done, and `observatory up` brings the rest of the stack up"
            if done
            else "the database was not changed"
        )
        raise


def exchange(platform: Platform, record: RollbackRecord, access: KeptAccess, report: Reporter) -> RollbackRecord:
    """Exchange the data and agree on the schema. A signal does not interrupt it: it takes seconds.

    Clients wait meanwhile, which sends no page.

    Raises:
        DatabaseRollbackError: a step failed.
    """
    swap = swap_of(platform)
    with _uninterrupted(report), task(report, "exchange the database"), _announced(platform, record, report):
        return agree(platform, swap, swap.begin(record, access))


def agree(platform: Platform, swap: Swap, record: RollbackRecord) -> RollbackRecord:
    """Have the rollout document agree with the schema of the database.

    Fleets without traffic whose version does not fit the schema are stopped, as after a rollback of a deployment. An
    undo starts those again that its rollback has stopped.
    """
    if record.from_dump and record.kind == "rollback":
        _complete(platform, swap, record)
    store = platform.rollout_store
    document = store.read()
    if document is not None:
        changed = document.model_copy(update={"schema_target": record.schema_target})
        for fleet in (*record.stopped, *record.started):
            if not document.fleet(fleet).weight:
                stopped = _instances(platform, fleet) if fleet in record.stopped else ()
                changed = changed.with_fleet(fleet, stopped=stopped)
        if changed != document:
            store.compare_and_set(document, changed)
    return swap.records.write(record.changed(phase=Phase.UP))


def end_agreed(platform: Platform) -> None:
    """End the rollback whose stack is up again, if there is one; it is in the journal first."""
    records = records_of(platform.workspace)
    record = records.unfinished()
    if record is None or record.phase is not Phase.UP:
        return
    lost: dict[str, object] = {"transactions": record.lost_transactions, "rows": record.lost_rows}
    if record.unreadable:
        lost["unreadable"] = list(record.unreadable)
    record_event(
        platform.workspace,
        "database-rollback-undone" if record.kind == "undo" else "database-rolled-back",
        rollback=record.id,
        target=record.target,
        source=record.source,
        schema_before=record.schema_before,
        schema_after=record.schema_after,
        lost=None if record.lost_rows is None else lost,
        reason=record.reason,
    )
    records.end(record)


def _complete(platform: Platform, swap: Swap, record: RollbackRecord) -> None:
    """Give a database that was restored from a dump what no dump has: pg_cron, its jobs, and the rights of logins."""
    declared = declared_schema(platform)
    if declared is None:
        return
    name, server = declared_name(platform), with_database(swap.administrator, "postgres")
    owner = str(conninfo_to_dict(declared["conninfo"])["user"])
    ensure_database(server, name=name, owner=owner)
    if record.cron_jobs:
        from observatory.backups.dump_restore import restore_cron_jobs  # noqa: PLC0415 - no `up` needs it

        restore_cron_jobs(swap.administrator, record.cron_jobs)
    schedule_jobs(declared["conninfo"])
    grant_access(declared["conninfo"], roles=declared.get("roles", {}))


def _instances(platform: Platform, fleet: FleetName) -> tuple[str, ...]:
    settings = platform.settings
    first = int(getattr(settings.ports, fleet))
    return tuple(labelled(fleet, range(first, first + settings.fleets.size)))


def _announced(platform: Platform, record: RollbackRecord, report: Reporter) -> AbstractContextManager[None]:
    """Silence the alert on clients that wait for a connection: the exchange holds them back."""

    def noted(_event: str, *, reason: str, **_details: str) -> None:
        tell(report, Progress(task=f"{CLIENTS_WAIT} is not silenced: {reason}", phase=Progressing.WARNED))

    reason = f"the database is being exchanged: {record.kind} {record.id}"
    return FleetSilences(stack_alertmanager(platform.workspace), noted).announced(record.id, CLIENTS_WAIT, reason)


@contextmanager
def _uninterrupted(report: Reporter) -> Iterator[None]:
    """Let no signal end the block, but report it."""

    def noted(*_received: object) -> None:
        tell(
            report, Progress(task="the database is being exchanged, which is finished first", phase=Progressing.WARNED)
        )

    with handle_stop_signals(noted):
        yield
