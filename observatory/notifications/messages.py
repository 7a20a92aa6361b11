"""What is told of a delivery: some of the journal's entries, in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from observatory.documents.journal import Entry

Kind = Literal["start", "step", "success", "rollback", "rolled-back", "escalation", "proposal"]
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
    "start": "deployment of {version} begins",
    "step": "{version} gets traffic",
    "success": "{version} is promoted",
    "rollback": "{version} is being rolled back",
    "rolled-back": "{version} was rolled back",
    "escalation": "{version}: somebody must look",
    "proposal": "{version} should be rolled back",
}


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One thing to tell.

    Attributes:
        kind: what of; decides who is told and how urgently.
        stack: whose.
        deployment: its id: all notices of one belong together.
        title: one line.
        text: why, and the numbers; a line each.
        actor: who did it.
        at: when, in ISO 8601.
        details: what the journal has.
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
        """Return it as JSON has it."""
        return asdict(self)


def notice_of(entry: Entry, stack: str) -> Notice | None:
    """Return what is told of an entry, None where nothing is."""
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
