"""Gates: may a step go on? The new fleet is measured against absolute limits and against the fleet it replaces.

Not knowing is never a pass: no data, NaN or an unreachable Prometheus is `unknown`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from observatory.delivery.environment import Sample

Ratio = Annotated[float, Field(ge=0, le=1)]


class Limits(BaseModel):
    """What a fleet may do and still be promoted.

    Attributes:
        error_ratio: most errors among the requests.
        error_ratio_over_old: how much more than the old fleet's that may be.
        p95_s: longest 95th percentile of the time to answer, in seconds.
        p95_factor: how many times the old fleet's that may be, where the old fleet has enough requests.
        p95_unnoticed_s: up to here no factor counts: three times of two milliseconds hurts nobody.
        saturation: fullest that an instance may be.
        restarts: most restarts of its instances.
        minimum_requests: fewer in the window are too few to judge.
        interval_s: seconds between two looks.
        failures: bad looks in a row that fail the step.
        deadline_s: seconds without a verdict, beyond the bake, that fail it too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    error_ratio: Ratio = 0.02
    error_ratio_over_old: Ratio = 0.01
    p95_s: Annotated[float, Field(gt=0)] = 1.0
    p95_factor: Annotated[float, Field(ge=1)] = 3.0
    p95_unnoticed_s: Annotated[float, Field(ge=0)] = 0.1
    saturation: Ratio = 0.9
    restarts: Annotated[int, Field(ge=0)] = 0
    minimum_requests: Annotated[int, Field(ge=1)] = 20
    interval_s: Annotated[float, Field(gt=0, le=60)] = 5.0
    failures: Annotated[int, Field(ge=1, le=10)] = 3
    deadline_s: Annotated[float, Field(ge=0, le=86_400)] = 120.0


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
