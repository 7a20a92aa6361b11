"""The history of deployments, from the audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from observatory.documents.journal import Entry, entries
from observatory.operations.stack_outputs import required_outputs
from observatory.platforms import open_platform
from observatory.platforms.errors import StackNotUpError
from observatory.progress import Phase, Progress, Reporter, silent
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.database.audit_table import AuditEntry

Outcome = Literal["promoted", "rolled back", "under way", "escalated"]
OUTCOMES: dict[str, Outcome] = {"promoted": "promoted", "rolled-back": "rolled back", "escalate": "escalated"}


@dataclass(frozen=True, kw_only=True)
class DeliveryReport:
    """One deployment of the audit.

    Attributes:
        id: of the deployment.
        actor: who started it.
        version: the deployed version.
        strategy: of the deployment.
        source: the fleet that was active before.
        target: the fleet that got the version.
        started: in seconds since the epoch.
        ended: in seconds since the epoch; None while it is under way.
        outcome: its result.
        reason: why it was rolled back or escalated.
        gates: number of evaluations by verdict.
        entries: every entry, oldest first.
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


def report_deliveries(workspace: Workspace, *, report: Reporter = silent) -> list[DeliveryReport]:
    """Return every recorded deployment, oldest first: those of the audit table, and of this checkout's journal.

    Without the database the report has the deployments of this checkout's journal only, and `report` gets a warning.
    """
    from observatory.database.errors import DatabaseError  # noqa: PLC0415 - only with a database

    found = {entry.id: entry for entry in entries(workspace.journal)}
    try:
        found |= {row.id: _entry(row) for row in _rows(workspace)}
    except (DatabaseError, StackNotUpError) as error:
        report(Progress(task=f"the report has this checkout's journal only: {error}", phase=Phase.WARNED))
    grouped: dict[str, list[Entry]] = {}
    for entry in sorted(found.values(), key=lambda entry: entry.at):
        if deployment := entry.details.get("deployment"):
            grouped.setdefault(deployment, []).append(entry)
    return [_delivery(deployment, events) for deployment, events in grouped.items()]


def _rows(workspace: Workspace) -> list[AuditEntry]:
    from observatory.database.audit_table import read_entries  # noqa: PLC0415 - psycopg only where it is used

    platform = open_platform(workspace)
    return read_entries(platform.administrator(required_outputs(platform, show_secrets=False)))


def _entry(row: AuditEntry) -> Entry:
    return Entry(id=row.id, at=row.at, actor=row.actor, event=row.event, details=row.details)


def _delivery(deployment: str, events: list[Entry]) -> DeliveryReport:
    details: dict[str, Any] = {}
    gates: dict[str, int] = {}
    outcome: Outcome = "under way"
    ended = reason = None
    for event in events:
        details = {**event.details, **details}
        if event.event == "gate":
            verdict = event.details["verdict"]
            gates[verdict] = gates.get(verdict, 0) + 1
        if event.event in OUTCOMES:
            outcome, ended, reason = OUTCOMES[event.event], event.at, event.details.get("reason")
    return DeliveryReport(
        id=deployment,
        actor=events[0].actor,
        version=details.get("version", "?"),
        strategy=details.get("strategy", "?"),
        source=details.get("source", "?"),
        target=details.get("target", "?"),
        started=events[0].at,
        ended=ended,
        outcome=outcome,
        reason=reason,
        gates=gates,
        entries=events,
    )
