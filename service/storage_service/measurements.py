"""The metric item: one measurement of a client's own, as clients send it and as it is stored."""

from typing import Literal

from .fields import BigCount, Double, JsonObject, Name
from .items import TimedItem
from .tables import Table


class Measurement(TimedItem):
    """One measurement. The fields are the columns of `llm_metrics`.

    Attributes:
        value: of a counter its increase, of a gauge its state, of a histogram what the client sums it up to.
        count: measurements in a histogram; `sum`, `min` and `max` are over them.
    """

    metric_name: Name
    metric_type: Literal["counter", "gauge", "histogram"]
    provider: Name
    model: Name
    environment: Name | None = None
    user_id: Name | None = None
    value: Double
    count: BigCount | None = None
    sum: Double | None = None
    min: Double | None = None
    max: Double | None = None
    tags: JsonObject | None = None


MEASUREMENTS = Table(
    name="llm_metrics",
    columns=tuple(Measurement.model_fields),
    json_columns=frozenset({"tags"}),
)
