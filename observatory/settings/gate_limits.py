"""Limits of the gates. `observatory.delivery.gates` applies them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Ratio = Annotated[float, Field(ge=0, le=1)]


class GateLimits(BaseModel):
    """Limits that a fleet's measurements must stay within to be promoted.

    Attributes:
        error_ratio: maximum share of errors among the requests, 0 to 1.
        error_ratio_over_old: maximum by which it may exceed the old fleet's.
        p95_s: maximum 95th percentile of the response time, in seconds.
        p95_factor: maximum multiple of the old fleet's 95th percentile.
        p95_unnoticed_s: seconds below which `p95_factor` does not count: three times two milliseconds is harmless.
        saturation: maximum saturation of an instance, 0 to 1.
        restarts: maximum restarts of the fleet's instances.
        minimum_requests: requests in the window that a verdict needs.
        interval_s: seconds between two evaluations.
        failures: failed evaluations in a row that fail the step.
        deadline_s: seconds without a verdict that fail the step.
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
