"""Gates: decide whether a step may continue, by comparing the new fleet with limits and with the fleet it replaces.

`observatory.settings.gate_limits` has the limits and their defaults; the setting `delivery.gates` changes them.
A missing measurement is never a pass: no data, NaN or an unreachable Prometheus give the verdict `unknown`.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from observatory.delivery.environment import Sample
from observatory.settings.gate_limits import GateLimits

MEASUREMENTS = ("requests", "error_ratio", "p95_s", "saturation")


class Verdict(NamedTuple):
    """The result of one evaluation, with the reasons for `failed` and `unknown`."""

    result: Literal["passed", "failed", "unknown"]
    reasons: tuple[str, ...] = ()


def judge(new: Sample | None, old: Sample | None, limits: GateLimits) -> Verdict:
    """Judge the new fleet by its measurements and those of the old one; None where a fleet has none.

    A firing alert and a restart fail whatever the traffic is; ratios need `minimum_requests`. While the database is
    down the verdict is `unknown`: every fleet fails and its alerts fire then, whatever its version.
    """
    if new is None:
        return Verdict("unknown", ("no metrics of the new fleet",))
    if new.database_down:
        return Verdict("unknown", ("the database is down, or was just now: see the alert StorageDatabaseDown",))
    if failures := (*(f"alert {name} is firing" for name in new.alerts), *_restarts(new, limits)):
        return Verdict("failed", failures)
    if not_finite := _not_finite(new):
        return Verdict("unknown", not_finite)
    if new.requests < limits.minimum_requests:
        return Verdict("unknown", (f"{new.requests:.0f} requests, at least {limits.minimum_requests} are required",))
    comparable = old if old and not _not_finite(old) and old.requests >= limits.minimum_requests else None
    reasons = (*_absolute(new, limits), *(_relative(new, comparable, limits) if comparable else ()))
    return Verdict("failed", reasons) if reasons else Verdict("passed")


def _not_finite(sample: Sample) -> tuple[str, ...]:
    values = ((name, getattr(sample, name)) for name in MEASUREMENTS)
    return tuple(
        f"{name} is {'NaN' if math.isnan(value) else 'infinite'}"
        for name, value in values
        if value is not None and not math.isfinite(value)
    )


def _restarts(new: Sample, limits: GateLimits) -> tuple[str, ...]:
    return (f"{new.restarts} restarts, {limits.restarts} allowed",) if new.restarts > limits.restarts else ()


def _absolute(new: Sample, limits: GateLimits) -> tuple[str, ...]:
    reasons = []
    if new.error_ratio > limits.error_ratio:
        reasons.append(f"{new.error_ratio:.2%} errors, {limits.error_ratio:.2%} allowed")
    if new.p95_s is not None and new.p95_s > limits.p95_s:
        reasons.append(f"p95 {new.p95_s:.3f} s, {limits.p95_s:.3f} s allowed")
    if new.saturation > limits.saturation:
        reasons.append(f"saturation {new.saturation:.0%}, {limits.saturation:.0%} allowed")
    return tuple(reasons)


def _relative(new: Sample, old: Sample, limits: GateLimits) -> tuple[str, ...]:
    reasons = []
    if new.error_ratio > old.error_ratio + limits.error_ratio_over_old:
        reasons.append(f"{new.error_ratio:.2%} errors, the old fleet has {old.error_ratio:.2%}")
    slowest = max(limits.p95_unnoticed_s, (old.p95_s or math.inf) * limits.p95_factor)
    if new.p95_s is not None and new.p95_s > slowest:
        reasons.append(f"p95 {new.p95_s:.3f} s, the old fleet has {old.p95_s or 0:.3f} s")
    return tuple(reasons)
