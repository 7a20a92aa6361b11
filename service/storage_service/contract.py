"""Request bodies, query parameters and responses of the endpoints. The OpenAPI schemas are generated from them."""

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from .costs import DIMENSIONS, MAX_COSTS, Bucket, Dimension
from .cursors import MAX_LENGTH as MAX_CURSOR
from .fields import Name, Timestamp
from .items import MAX_ITEMS
from .log_entries import LogEntry
from .measurements import Measurement
from .problems import FieldError
from .spans import MAX_SPANS
from .traces import Trace

_SPACE_FOR_PLUS = re.compile(r" \d\d:\d\d$", re.ASCII)
NO_GROUPS = "none"
"""Value of `group_by` for one row for each bucket."""


class TraceBatch(BaseModel):
    """Request body: traces to store."""

    items: Annotated[list[Trace], Field(max_length=MAX_ITEMS)]


class MeasurementBatch(BaseModel):
    """Request body: metrics to store."""

    items: Annotated[list[Measurement], Field(max_length=MAX_ITEMS)]


class LogBatch(BaseModel):
    """Request body: log lines to store."""

    items: Annotated[list[LogEntry], Field(max_length=MAX_ITEMS)]


class WriteQuery(BaseModel):
    """Query parameters of a write.

    Attributes:
        results: `items` stores the valid items even if others are invalid, and returns a result for each.
    """

    model_config = ConfigDict(extra="forbid")

    results: Literal["items"] | None = None


class ItemResult(BaseModel):
    """Result of one item of a write: it is stored unless it has errors."""

    status: Literal["accepted", "rejected"]
    errors: list[FieldError] | None = None


class Accepted(BaseModel):
    """Response to a write: the accepted items are committed.

    Attributes:
        accepted: number of items that are stored.
        rejected: number of invalid items, with `results=items`.
        items: results in the order of the request, with `results=items`.
    """

    accepted: int
    rejected: int | None = None
    items: list[ItemResult] | None = None


class StoredSpan(Trace):
    """A span as it is stored.

    Attributes:
        duplicate: the same `trace_id` and `span_id` are also stored with an earlier `ts`. A list of traces considers
            the day of the span and the day before (UTC).
    """

    duplicate: bool


class SpanList(BaseModel):
    """Response: a page of spans.

    Attributes:
        next: cursor of the next page; null on the last one.
        duplicates: number of duplicates: in a list of traces those of the page, in a trace those of the whole trace.
    """

    items: list[StoredSpan]
    next: str | None
    duplicates: int


class PageQuery(BaseModel):
    """Query parameters of every list.

    Attributes:
        cursor: `next` of the page before; the other parameters, except `limit`, must be those of the first page.
    """

    model_config = ConfigDict(extra="forbid")

    cursor: Annotated[str, Field(max_length=MAX_CURSOR)] | None = None


class SpanQuery(PageQuery):
    """Query parameters for the spans of a trace."""

    limit: Annotated[int, Field(ge=1, le=MAX_SPANS)] = MAX_SPANS


class TraceQuery(PageQuery):
    """Query parameters for traces."""

    provider: Name | None = None
    model: Name | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_SPANS)] = 100


def _with_offset(value: object) -> object:
    if isinstance(value, str) and _SPACE_FOR_PLUS.search(value):
        raise ValueError("has a space before its offset: in a URL, write the + of an offset as %2B, or use Z")
    return value


QueryTime = Annotated[Timestamp, BeforeValidator(_with_offset)]
"""A time in a URL, where a `+` that is not escaped is a space."""


def _group_by(value: str) -> str:
    names = value.split(",")
    if value != NO_GROUPS and (len(set(names)) < len(names) or not set(names) <= set(DIMENSIONS)):
        raise ValueError(f"must be {NO_GROUPS!r}, or some of {','.join(DIMENSIONS)}, each once, with commas between")
    return value


class CostQuery(PageQuery):
    """Query parameters for costs: those of the hours (UTC) that begin at `from` or later, and before `to`."""

    to: QueryTime
    from_: Annotated[QueryTime, Field(alias="from")]
    bucket: Bucket = "hour"
    group_by: Annotated[str, AfterValidator(_group_by)] = ",".join(DIMENSIONS)
    limit: Annotated[int, Field(ge=1, le=MAX_COSTS)] = MAX_COSTS

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The columns to group by, always in the same order."""
        names = self.group_by.split(",")
        return tuple(dimension for dimension in DIMENSIONS if dimension in names)

    @field_validator("from_", mode="after")
    @classmethod
    def _period_is_not_empty(cls, value: datetime, info: ValidationInfo) -> datetime:
        if "to" in info.data and value >= info.data["to"]:
            raise ValueError("must be before 'to'")
        return value


class Cost(BaseModel):
    """Costs of one bucket in US dollars, of one group.

    Attributes:
        bucket: start of the hour or day (UTC); of the period, if `bucket` is `total`.
        provider: absent unless `group_by` names it, as are model, environment and user_id.
    """

    bucket: datetime
    provider: str | None = None
    model: str | None = None
    environment: str | None = None
    user_id: str | None = None
    request_count: int
    total_cost_usd: float | None
    prompt_cost_usd: float | None
    completion_cost_usd: float | None
    total_tokens: int | None


class CostList(BaseModel):
    """Response: a page of costs.

    Attributes:
        next: cursor of the next page; null on the last one.
    """

    items: list[Cost]
    next: str | None


class Check(BaseModel):
    """Result of one health check."""

    status: Literal["ok", "failed"]
    detail: str = ""


class Health(BaseModel):
    """State of this instance with the result of each check."""

    status: Literal["ok", "failed", "draining"]
    version: str
    fleet: str
    checks: dict[str, Check]


class Status(BaseModel):
    """State of this instance in one word."""

    status: Literal["ok", "failed", "draining"]
