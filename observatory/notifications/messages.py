"""Notices: the journal's entries that are sent to people, as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from observatory.documents.journal import Entry

Kind = Literal[
    "start",
    "step",
    "success",
    "rollback",
    "rolled-back",
    "escalation",
    "proposal",
    "monitoring-down",
    "monitoring-up",
]
KINDS: dict[str, Kind] = {
    "start": "start",
    "shift": "step",
    "moved": "step",
    "promoted": "success",
    "rollback": "rollback",
    "rolled-back": "rolled-back",
    "escalate": "escalation",
    "propose-rollback": "proposal",
}
TITLES: dict[Kind, str] = {
    "start": "deployment of {version} started",
    "step": "{version} receives traffic",
    "success": "{version} promoted",
    "rollback": "rollback of {version} started",
    "rolled-back": "{version} rolled back",
    "escalation": "deployment of {version} requires an operator",
    "proposal": "rollback of {version} proposed",
    "monitoring-down": "monitoring is down, alerts are not delivered",
    "monitoring-up": "monitoring is up again",
}


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One notification.

    Attributes:
        kind: of event; channels choose the urgency by it.
        stack: name of the stack.
        deployment: id of the deployment, which groups its notices; `monitoring` for those about monitoring.
        title: one line.
        text: the details, one line each.
        actor: who caused the event.
        at: when, in ISO 8601.
        details: as in the journal.
    """

    kind: Kind
    stack: str
    deployment: str
    title: str
    text: str
    actor: str
    at: str
    details: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """Return the notice as a JSON document."""
        return asdict(self)


def notice_of(entry: Entry, stack: str) -> Notice | None:
    """Return the notice of a journal entry, None if the event sends none."""
    kind = KINDS.get(entry.event)
    if kind is None:
        return None
    details = entry.details
    return Notice(
        kind=kind,
        stack=stack,
        deployment=str(details.get("deployment", entry.id)),
        title=f"{stack}: " + TITLES[kind].format(version=details.get("version", "the service")),
        text="\n".join(f"{key}: {_shown(value)}" for key, value in details.items() if value not in (None, [], {})),
        actor=entry.actor,
        at=datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="milliseconds"),
        details=details,
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
