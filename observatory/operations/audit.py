"""The audit of a stack: its journal, copied to a table that nobody changes and to the store of the backups.

The journal's file is the first record, which needs neither. What the others lack, by the entries' ids, is added at the
end of a command; what could not be added, or a killed command left, by the next one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from observatory.delivery.errors import DeliveryRefusedError
from observatory.documents.journal import Entry, FileJournal, append, entries
from observatory.operations.environments import administrator, known_of
from observatory.progress import Phase, Progress, Reporter, silent
from observatory.settings import load_file
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.database.audit_table import AuditEntry

Outcome = Literal["promoted", "rolled back", "under way", "escalated"]
OUTCOMES: dict[str, Outcome] = {"promoted": "promoted", "rolled-back": "rolled back", "escalate": "escalated"}
STORE = "/srv/data/backups/audit"


@dataclass(frozen=True, kw_only=True)
class DeliveryReport:
    """One deployment, as the audit has it.

    Attributes:
        id: of the deployment.
        actor: who started it.
        version: that it brought.
        strategy: how.
        source: the fleet that served.
        target: the fleet that got the version.
        started: when, in seconds since the epoch.
        ended: when its outcome was there; None while it is under way.
        outcome: what became of it.
        reason: why it was rolled back or escalated.
        gates: number of evaluations by verdict.
        entries: all that is on record, oldest first.
    """

    id: str
    actor: str
    version: str
    strategy: str
    source: str
    target: str
    started: float
    ended: float | None
    outcome: Outcome
    reason: str | None
    gates: dict[str, int]
    entries: list[Entry]


def copy_to_store(workspace: Workspace) -> None:
    """Add the journal's entries to the copy beside the backups that lacks them; nothing on a stack that is gone."""
    sandbox = workspace.sandbox
    if not sandbox.home.is_dir():
        return
    sandbox.make_directory(STORE)
    file = sandbox.host_path(f"{STORE}/{workspace.stack}.jsonl")
    with file.open("a+b") as store:
        fcntl.flock(store, fcntl.LOCK_EX)
        known = {entry.id for entry in entries(file)}
        append(store, [entry for entry in entries(workspace.journal) if entry.id not in known])
        store.flush()
        os.fsync(store.fileno())
    sandbox.adopt(STORE)


def copy_to_table(workspace: Workspace, conninfo: str) -> None:
    """Add the journal's entries to the table that lacks them.

    Raises:
        DatabaseError: it cannot be reached, or refused.
    """
    from observatory.database.audit_table import AuditEntry, add_entries  # noqa: PLC0415 - psycopg only where it is used

    rows = (
        AuditEntry(id=each.id, at=each.at, actor=each.actor, event=each.event, details=each.details)
        for each in entries(workspace.journal)
    )
    add_entries(conninfo, rows)


def audit(workspace: Workspace, journal: FileJournal, conninfo: Callable[[], str] | None) -> None:
    """Copy the journal to the store, and to the table where its place is given; what fails is told, and no more."""
    try:
        copy_to_store(workspace)
    except OSError as error:
        journal.record("not-audited", where="store", reason=str(error))
    if conninfo is None:
        return
    from observatory.database.errors import DatabaseError  # noqa: PLC0415 - only where the database is asked

    try:
        copy_to_table(workspace, conninfo())
    except (DatabaseError, DeliveryRefusedError) as error:
        journal.record("not-audited", where="table", reason=str(error))


def report_deliveries(workspace: Workspace, *, report: Reporter = silent) -> list[DeliveryReport]:
    """Return every deployment that is on record, oldest first: of the table, and of the journal what is not yet there.

    Without the database the journal of this checkout alone is asked, and `report` hears so.
    """
    from observatory.database.errors import DatabaseError  # noqa: PLC0415 - only where the database is asked

    found = {entry.id: entry for entry in entries(workspace.journal)}
    try:
        found |= {row.id: _entry(row) for row in _table(workspace)}
    except (DatabaseError, DeliveryRefusedError) as error:
        report(Progress(task=f"only this checkout's journal was asked: {error}", phase=Phase.WARNED))
    grouped: dict[str, list[Entry]] = {}
    for entry in sorted(found.values(), key=lambda entry: entry.at):
        if deployment := entry.details.get("deployment"):
            grouped.setdefault(deployment, []).append(entry)
    return [_delivery(deployment, events) for deployment, events in grouped.items()]


def _table(workspace: Workspace) -> list[AuditEntry]:
    from observatory.database.audit_table import read_entries  # noqa: PLC0415 - psycopg only where it is used

    return read_entries(administrator(load_file(workspace.config_file), known_of(workspace, show_secrets=False)))


def _entry(row: AuditEntry) -> Entry:
    return Entry(id=row.id, at=row.at, actor=row.actor, event=row.event, details=row.details)


def _delivery(deployment: str, events: list[Entry]) -> DeliveryReport:
    known: dict[str, Any] = {}
    gates: dict[str, int] = {}
    outcome: Outcome = "under way"
    ended = reason = None
    for event in events:
        known = {**event.details, **known}
        if event.event == "gate":
            verdict = event.details["verdict"]
            gates[verdict] = gates.get(verdict, 0) + 1
        if event.event in OUTCOMES:
            outcome, ended, reason = OUTCOMES[event.event], event.at, event.details.get("reason")
    return DeliveryReport(
        id=deployment,
        actor=events[0].actor,
        version=known.get("version", "?"),
        strategy=known.get("strategy", "?"),
        source=known.get("source", "?"),
        target=known.get("target", "?"),
        started=events[0].at,
        ended=ended,
        outcome=outcome,
        reason=reason,
        gates=gates,
        entries=events,
    )
