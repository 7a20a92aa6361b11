"""Journal events as text, for the terminal, and the phase that each is shown as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from observatory.documents.gate_text import gate_text, step_text
from observatory.progress import Phase

Details = Mapping[str, Any]


VERDICTS = {"passed": Phase.DONE, "failed": Phase.FAILED, "unknown": Phase.UNKNOWN}
# Events other than "done": what went wrong, and what an operator should see.
PHASES = {
    "tests-failed": Phase.FAILED,
    "escalate": Phase.FAILED,
    "not-restored": Phase.FAILED,
    "not-stopped": Phase.FAILED,
    "not-restarted": Phase.FAILED,
    "not-shifted": Phase.FAILED,
    "unreadable": Phase.WARNED,
    "recovered": Phase.WARNED,
    "lock-lost": Phase.WARNED,
    "restart": Phase.WARNED,
    "rollback": Phase.WARNED,
    "rolled-back": Phase.WARNED,
    "tests-skipped": Phase.WARNED,
    "unjudged": Phase.UNKNOWN,
    "tests-unjudged": Phase.UNKNOWN,
    "no-metrics": Phase.UNKNOWN,
    "not-audited": Phase.WARNED,
    "not-silenced": Phase.WARNED,
    "paused": Phase.WARNED,
}


def event_phase(event: str, details: Details) -> Phase:
    """Return the phase of an event: of an evaluation by its verdict."""
    return VERDICTS.get(details.get("verdict", ""), PHASES.get(event, Phase.DONE))


def event_text(event: str, details: Details) -> str:
    """Return one line of text for an event; events without a text of their own are shown with their details."""
    if text := TEXTS.get(event):
        return text(details)
    shown = ", ".join(f"{key} {value}" for key, value in details.items() if _is_shown(key, value))
    return f"{event}: {shown}" if shown else event


def _is_shown(key: str, value: Any) -> bool:
    return key != "deployment" and value not in (None, [], {})


def _where(details: Details) -> str:
    return ", ".join(details.get("instances") or (str(details.get("fleet")),))


def _start(details: Details) -> str:
    return f"deployment of {details.get('version')} to {details.get('target')} started ({details.get('strategy')})"


def _shift(details: Details) -> str:
    return f"traffic weights: {step_text(details)}"


TEXTS: Mapping[str, Callable[[Details], str]] = {
    "tests-passed": lambda details: "; ".join(
        (f"pre-deployment tests of {details.get('version')} passed", *details.get("unchecked", ()))
    ),
    "tests-failed": lambda details: f"pre-deployment tests of {details.get('version')} failed: {details.get('reason')}",
    "tests-unjudged": lambda details: (
        f"pre-deployment tests cannot judge {details.get('version')}: {details.get('reason')}"
    ),
    "unjudged": lambda details: f"waiting: {details.get('reason')}",
    "tests-skipped": lambda details: f"pre-deployment tests of {details.get('version')} skipped",
    "start": _start,
    "install": lambda details: f"installing {details.get('version')} on {_where(details)}",
    "verify": lambda details: f"verifying {_where(details)}",
    "shift": _shift,
    "drain": lambda details: f"draining {_where(details)}",
    "moved": lambda details: f"{_where(details)} updated",
    "moved-back": lambda details: f"{_where(details)} restored",
    "gate": gate_text,
    "paused": lambda details: f"{details.get('version')} paused: {details.get('reason')}",
    "continued": lambda details: f"{details.get('version')} continues",
    "no-metrics": lambda details: f"no metrics of {details.get('fleet')}: {details.get('reason')}",
    "promoted": lambda details: f"{details.get('version')} promoted",
    "rollback": lambda details: f"rollback started: {details.get('reason')}",
    "rolled-back": lambda details: f"{details.get('version')} rolled back: {details.get('reason')}",
    "stopped": lambda details: f"{_where(details)}, which failed, is stopped",
    "not-stopped": lambda details: f"{_where(details)} was not stopped: {details.get('reason')}",
    "restart": lambda details: f"restarting {_where(details)}, which does not respond: {details.get('reason')}",
    "not-restarted": lambda details: f"{_where(details)} was not restarted: {details.get('reason')}",
    "not-shifted": lambda details: f"the balancer did not accept new weights: {details.get('reason')}",
    "unreadable": lambda details: f"the rollout document cannot be read: {details.get('reason')}",
    "recovered": lambda details: f"rollout document recovered: {details.get('reason')}",
    "lock-lost": lambda details: f"deployment lock lost: {details.get('reason')}",
    "lock-unknown": lambda details: f"deployment lock not checked: {details.get('reason')}",
    "lock-regained": lambda details: f"deployment lock regained: {details.get('reason')}",
    "database-rolled-back": lambda details: f"the database was rolled back to {details.get('target')}",
    "database-rollback-undone": lambda _details: "the rollback of the database was undone",
    "escalate": lambda details: f"operator required: {details.get('reason')}",
    "not-restored": lambda details: f"previous version not restored on {_where(details)}: {details.get('reason')}",
}
