"""A deployment as its pages show it: its steps, its gates, and the commands that act on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from observatory import operations
from observatory.documents.gate_text import SHARES, step_text
from observatory.documents.journal import Entry

SHOWN_GATES = 200  # the newest; a long step is evaluated every few seconds


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One number of a gate, beside its limit; `over` if it is beyond it."""

    name: str
    value: str
    limit: str
    over: bool


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One evaluation: its time, its verdict, its step, and what it found in both fleets."""

    at: float
    verdict: str
    step: str
    reasons: Sequence[str]
    findings: Sequence[Finding]
    new: Mapping[str, Any]
    old: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A deployment.

    Attributes:
        id, version, strategy, source, target, actor, started, ended, outcome, reason: as in the report.
        weights: the share of the new version at each step, in percent.
        step: number of the current step, from 1; 0 before the first.
        left_s: seconds that this step still takes; None if that is not known.
        gates: the newest `SHOWN_GATES` evaluations, the newest first.
        all_gates: number of all evaluations.
        entries: every event, oldest first.
        commands: what can be done now, each with its command.
    """

    id: str
    version: str
    strategy: str
    source: str
    target: str
    actor: str
    started: float
    ended: float | None
    outcome: str
    reason: str | None
    weights: Sequence[int]
    step: int
    left_s: float | None
    gates: Sequence[Gate]
    all_gates: int
    entries: Sequence[Entry]
    commands: Sequence[tuple[str, str]]


def current(status: operations.Status, deliveries: Sequence[operations.DeliveryReport]) -> Shown | None:
    """Return the deployment that runs, or the last one; None where there was none."""
    document = status.rollout.deployment if status.rollout else None
    found = next((each for each in deliveries if document and each.id == document.id), None)
    return recorded(found, status) if found else None


def recorded(found: operations.DeliveryReport, status: operations.Status | None) -> Shown:
    """Return a deployment of the report; what only the rollout document has is there for the last one."""
    document = status.rollout.deployment if status and status.rollout else None
    document = document if document and document.id == found.id else None
    gates = [_gate(entry) for entry in found.entries if entry.event == "gate"]
    last = next((entry for entry in reversed(found.entries) if entry.event in {"gate", "shift"}), None)
    return Shown(
        id=found.id,
        version=found.version,
        strategy=found.strategy,
        source=found.source,
        target=found.target,
        actor=found.actor,
        started=found.started,
        ended=found.ended,
        outcome=_outcome(found, document),
        reason=found.reason or (document.reason if document else None),
        weights=document.weights if document else _weights(found),
        step=int(last.details.get("step") or 0) if last else 0,
        left_s=_left(last) if last and found.ended is None else None,
        gates=gates[::-1][:SHOWN_GATES],
        all_gates=len(gates),
        entries=found.entries,
        commands=list(_commands(found, document)),
    )


def _outcome(found: operations.DeliveryReport, document: operations.Deployment | None) -> str:
    return document.status if document and found.ended is None else found.outcome


def _weights(found: operations.DeliveryReport) -> list[int]:
    """Return the shares of the target at each step, which the start of a deployment has; none of a rolling update."""
    started = next((entry for entry in found.entries if entry.event == "start"), None)
    return list(started.details.get("weights") or ()) if started else []


def _left(last: Entry) -> float | None:
    bake, baked = last.details.get("bake_s"), last.details.get("baked_s")
    return max(0.0, bake - (baked or 0.0)) if bake is not None else None


def _gate(entry: Entry) -> Gate:
    details = entry.details
    return Gate(
        at=entry.at,
        verdict=str(details.get("verdict", "unknown")),
        step=step_text(details),
        reasons=[str(each) for each in details.get("reasons") or ()],
        findings=list(_findings(details.get("findings") or ())),
        new=details.get("new") or {},
        old=details.get("old") or {},
    )


def _findings(findings: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for each in findings:
        value, limit, least = each.get("value"), each.get("limit"), each.get("kind") == "requests"
        if value is None:
            continue
        over = limit is not None and (value < limit if least else value > limit)
        word = "at least " if least else "limit "
        yield Finding(
            name=str(each.get("name")),
            value=_number(each, value),
            limit="" if limit is None else word + _number(each, limit),
            over=over,
        )


def _number(finding: Mapping[str, Any], value: float) -> str:
    return f"{value * 100:.2f} %" if finding.get("kind") in SHARES else f"{value:.4g}"


def _commands(found: operations.DeliveryReport, document: operations.Deployment | None) -> Iterator[tuple[str, str]]:
    if document is None or (not document.ended and found.outcome in {"promoted", "rolled back"}):
        return  # the document was read before the deployment ended
    if document.ended:
        if document.status == "promoted" and found.strategy != "rolling":
            yield "Return the traffic to the previous fleet", "observatory rollback --method blue-green"
        return
    if document.status == "paused" or document.request == "pause":
        yield "Continue", "observatory rollout resume"
    else:
        yield "Pause at this step", "observatory rollout pause"
    yield "Promote now, without the remaining steps", "observatory rollout promote"
    yield "Roll back", "observatory rollout abort"
