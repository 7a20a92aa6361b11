"""Journal events as text, for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Details = Mapping[str, Any]


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
    weights = ", ".join(f"{fleet} {weight} %" for fleet, weight in details.get("weights", {}).items())
    return f"traffic weights: {weights}"


def _gate(details: Details) -> str:
    verdict = f"gate {details.get('verdict')}"
    if reasons := details.get("reasons"):
        return f"{verdict}: {'; '.join(reasons)}"
    samples = ((name, details.get(name)) for name in ("new", "old"))
    return f"{verdict}: " + "; ".join(f"{name} {_sample(sample)}" for name, sample in samples if sample)


def _sample(sample: Details) -> str:
    p95_s = sample.get("p95_s")
    p95 = "-" if p95_s is None else f"{p95_s * 1000:.0f} ms"
    return f"{sample.get('requests', 0):.0f} requests, {sample.get('error_ratio', 0):.2%} errors, p95 {p95}"


TEXTS: Mapping[str, Callable[[Details], str]] = {
    "tests-passed": lambda details: f"pre-deployment tests of {details.get('version')} passed",
    "tests-failed": lambda details: f"pre-deployment tests of {details.get('version')} failed: {details.get('reason')}",
    "tests-skipped": lambda details: f"pre-deployment tests of {details.get('version')} skipped",
    "start": _start,
    "install": lambda details: f"installing {details.get('version')} on {_where(details)}",
    "verify": lambda details: f"verifying {_where(details)}",
    "shift": _shift,
    "drain": lambda details: f"draining {_where(details)}",
    "moved": lambda details: f"{_where(details)} updated",
    "moved-back": lambda details: f"{_where(details)} restored",
    "gate": _gate,
    "no-metrics": lambda details: f"no metrics of {details.get('fleet')}: {details.get('reason')}",
    "promoted": lambda details: f"{details.get('version')} promoted",
    "rollback": lambda details: f"rollback started: {details.get('reason')}",
    "rolled-back": lambda details: f"{details.get('version')} rolled back",
    "escalate": lambda details: f"operator required: {details.get('reason')}",
    "not-restored": lambda details: f"previous version not restored on {_where(details)}: {details.get('reason')}",
}
