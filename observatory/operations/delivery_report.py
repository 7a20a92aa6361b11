"""The history of deployments, from the audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from observatory.documents.journal import Entry
from observatory.operations.audit_entries import list_audit
from observatory.progress import Reporter, silent
from observatory.workspace import Workspace

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
    grouped: dict[str, list[Entry]] = {}
    for entry in list_audit(workspace, report=report):
        deployment = entry.details.get("deployment")
        if deployment and isinstance(deployment, str):
            grouped.setdefault(deployment, []).append(entry)
    return [_delivery(deployment, events) for deployment, events in grouped.items()]


def _delivery(deployment: str, events: list[Entry]) -> DeliveryReport:
    details: dict[str, Any] = {}
    gates: dict[str, int] = {}
    outcome: Outcome = "under way"
    ended = reason = None
    for event in events:
        details = {**event.details, **details}
        if event.event == "gate":
            verdict = str(event.details.get("verdict", "unknown"))
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
