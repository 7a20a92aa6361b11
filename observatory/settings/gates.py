"""Limits of the gates: what a fleet may do and still be promoted. `observatory.delivery.gates` applies them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

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
        interval_s: seconds between two evaluations.
        failures: failed evaluations in a row that fail the step.
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
