"""Limits of the gates. `observatory.delivery.gates` applies them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Ratio = Annotated[float, Field(ge=0, le=1)]
# Settings of earlier versions that have no meaning any more, and what to set instead.
REMOVED = {
    "failures": "was removed: a sequential test of all requests since the shift replaces failed evaluations in a row; "
    "set false_alarms or minimum_errors instead",
    "p95_factor": "was renamed to slow_factor: it applies to the median, the 95th and the 99th percentile",
    "p95_unnoticed_s": "was renamed to slow_unnoticed_s: it applies to the median, the 95th and the 99th percentile",
}


class GateLimits(BaseModel):
    """Limits that a fleet's measurements must stay within to be promoted.

    Attributes:
        false_alarms: probability that a deployment of an equal version is rolled back by the tests of its requests.
        error_ratio: share of failed requests, 0 to 1, that a version may have where no earlier requests exist to
            compare with; a version that exceeds it as its predecessor does is not promoted either.
        error_ratio_over_old: maximum by which the share of failed requests may exceed the old version's.
        client_error_ratio_over_old: the same for each 3xx and 4xx status of each route.
        slow_ratio_over_old: the same for the share of slow requests of each route.
        slow_factor: a request is slow above this multiple of the old version's median, 95th or 99th percentile.
        slow_unnoticed_s: seconds below which no request is slow: three times two milliseconds is harmless.
        p95_s: a request is also slow above this many seconds, and 95 % must be faster where nothing can be compared.
        saturation: maximum saturation of an instance, 0 to 1.
        restarts: maximum restarts of the fleet's instances.
        memory_mib: maximum growth of an instance's memory, in MiB for 1,000 requests, over the old fleet's.
        minimum_errors: bad requests that a failed test of requests needs; one never suffices.
        minimum_requests: requests, of clients and probes, that a step needs to pass.
        minimum_evaluations: evaluations that a step needs to pass.
        baseline_s: seconds before the shift whose requests are compared with.
        interval_s: seconds between two evaluations.
        deadline_s: seconds without a verdict after which a deployment is paused.
        pause_s: seconds that a paused deployment waits for a verdict or an operator before its command ends.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    false_alarms: Annotated[float, Field(gt=0, le=0.5)] = 0.01
    error_ratio: Ratio = 0.02
    error_ratio_over_old: Ratio = 0.001
    client_error_ratio_over_old: Ratio = 0.01
    slow_ratio_over_old: Ratio = 0.005
    slow_factor: Annotated[float, Field(ge=1)] = 3.0
    slow_unnoticed_s: Annotated[float, Field(ge=0)] = 0.1
    p95_s: Annotated[float, Field(gt=0)] = 1.0
    saturation: Ratio = 0.9
    restarts: Annotated[int, Field(ge=0)] = 0
    memory_mib: Annotated[float, Field(gt=0)] = 20.0
    minimum_errors: Annotated[int, Field(ge=2)] = 5
    minimum_requests: Annotated[int, Field(ge=1)] = 20
    minimum_evaluations: Annotated[int, Field(ge=1)] = 2
    baseline_s: Annotated[float, Field(ge=30, le=86_400)] = 600.0
    interval_s: Annotated[float, Field(gt=0, le=60)] = 5.0
    deadline_s: Annotated[float, Field(ge=0, le=86_400)] = 120.0
    pause_s: Annotated[float, Field(ge=0, le=86_400)] = 3600.0

    @model_validator(mode="before")
    @classmethod
    def _names_of_earlier_versions(cls, given: Any) -> Any:
        for name, change in REMOVED.items():
            if isinstance(given, dict) and name in given:
                raise ValueError(f"{name} {change}")
        return given
