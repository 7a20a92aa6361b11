"""Gates: may a step go on? The new fleet is measured against absolute limits and against the fleet it replaces.

Not knowing is never a pass: no data, NaN or an unreachable Prometheus is `unknown`.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from observatory.delivery.environment import Sample
from observatory.settings.gates import Limits


class Verdict(NamedTuple):
    """What a look at a fleet says, with the reasons for `failed` and `unknown`."""

    result: Literal["passed", "failed", "unknown"]
    reasons: tuple[str, ...] = ()


def judge(new: Sample | None, old: Sample | None, limits: Limits) -> Verdict:
    """Judge the new fleet; None stands for a fleet of which nothing is known.

    A firing alert and a restart count however little traffic there is; ratios need `minimum_requests`. While the
    database is down every fleet fails, and its alerts fire: that is no fleet's fault.
    """
    if new is None:
        return Verdict("unknown", ("nothing is known of the new fleet",))
    if new.database_down:
        return Verdict("unknown", ("the database does not answer, or did not lately: see StorageDatabaseDown",))
    certain = (*(f"the alert {name} fires" for name in new.alerts), *_restarted(new, limits))
    if certain:
        return Verdict("failed", tuple(certain))
    if not _finite(new):
        return Verdict("unknown", ("a measurement of the new fleet is no number",))
    if new.requests < limits.minimum_requests:
        seen = f"{new.requests:.0f} requests, {limits.minimum_requests} are needed to judge"
        return Verdict("unknown", (seen,))
    comparable = old if old and _finite(old) and old.requests >= limits.minimum_requests else None
    reasons = (*_absolute(new, limits), *(_relative(new, comparable, limits) if comparable else ()))
    return Verdict("failed", reasons) if reasons else Verdict("passed")


def _finite(sample: Sample) -> bool:
    values = (sample.requests, sample.error_ratio, sample.saturation, sample.p95_s or 0.0)
    return all(math.isfinite(value) for value in values)


def _restarted(new: Sample, limits: Limits) -> tuple[str, ...]:
    return (f"{new.restarts} restarts",) if new.restarts > limits.restarts else ()


def _absolute(new: Sample, limits: Limits) -> tuple[str, ...]:
    reasons = []
    if new.error_ratio > limits.error_ratio:
        reasons.append(f"{new.error_ratio:.2%} errors, {limits.error_ratio:.2%} allowed")
    if new.p95_s is not None and new.p95_s > limits.p95_s:
        reasons.append(f"p95 {new.p95_s:.3f} s, {limits.p95_s:.3f} s allowed")
    if new.saturation > limits.saturation:
        reasons.append(f"{new.saturation:.0%} full, {limits.saturation:.0%} allowed")
    return tuple(reasons)


def _relative(new: Sample, old: Sample, limits: Limits) -> tuple[str, ...]:
    reasons = []
    if new.error_ratio > old.error_ratio + limits.error_ratio_over_old:
        reasons.append(f"{new.error_ratio:.2%} errors, the old fleet has {old.error_ratio:.2%}")
    slowest = max(limits.p95_unnoticed_s, (old.p95_s or math.inf) * limits.p95_factor)
    if new.p95_s is not None and new.p95_s > slowest:
        reasons.append(f"p95 {new.p95_s:.3f} s, the old fleet's is {old.p95_s or 0:.3f} s")
    return tuple(reasons)
