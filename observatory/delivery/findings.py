"""What an evaluation found: one finding for each measurement, with its number, its limit and its decision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

Result = Literal["passed", "failed", "unknown"]
Kind = Literal[
    "errors", "client errors", "slow", "probes", "requests", "saturation", "sessions", "memory", "restarts", "alerts"
]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One measurement of the new version beside its limit.

    Attributes:
        kind: of the measurement.
        name: of what was measured, such as `404 of GET /v1/traces/{id}`.
        decision: what it decides.
        value: as measured; shares are 0 to 1.
        limit: what is allowed.
        bad: number of bad requests, where requests are counted.
        requests: number of requests, where they are counted.
        reason: why it failed or is unknown; empty where it passed.
    """

    kind: Kind
    name: str
    decision: Result
    value: float | None = None
    limit: float | None = None
    bad: float | None = None
    requests: float | None = None
    reason: str = ""


class Verdict(NamedTuple):
    """The result of one evaluation.

    Attributes:
        result: what it decides.
        reasons: for `failed` and `unknown`.
        findings: the measurements; the first of each kind is the worst of it.
        of_version: whether the version itself is the reason why the result is unknown.
    """

    result: Result
    reasons: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    of_version: bool = False


def verdict_of(
    findings: Iterable[Finding], *, surroundings: Iterable[str] = (), missing: Iterable[str] = ()
) -> Verdict:
    """Return the verdict of an evaluation: what failed goes before what is unknown.

    Args:
        findings: of the measurements.
        surroundings: what else than the version explains bad requests; they decide nothing then.
        missing: what the version should measure and does not.
    """
    found = tuple(findings)
    if failed := tuple(each.reason for each in found if each.decision == "failed"):
        return Verdict("failed", failed, found)
    outside, absent = tuple(surroundings), tuple(missing)
    doubts = tuple(each.reason for each in found if each.decision == "unknown")
    if reasons := (*outside, *absent, *doubts):
        return Verdict("unknown", reasons, found, of_version=bool(absent) and not outside)
    return Verdict("passed", (), found)
