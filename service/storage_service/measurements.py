"""The metric item: one measurement of a client, in requests and in the table."""

from typing import Literal

from .fields import BigCount, Double, JsonObject, Name
from .items import TimedItem
from .tables import Table


class Measurement(TimedItem):
    """One measurement. The fields are the columns of `llm_metrics`.

    Attributes:
        value: increase of a counter, value of a gauge, or the client's summary of a histogram.
        count: number of measurements in a histogram; `sum`, `min` and `max` summarize them.
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
)
