"""Request bodies, query parameters and responses of the endpoints. The OpenAPI schemas are generated from them."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from .fields import Name, Timestamp
from .items import MAX_ITEMS
from .log_entries import LogEntry
from .measurements import Measurement
from .traces import Trace


class TraceBatch(BaseModel):
    """Request body: traces to store."""

    items: Annotated[list[Trace], Field(max_length=MAX_ITEMS)]


class MeasurementBatch(BaseModel):
    """Request body: metrics to store."""

    items: Annotated[list[Measurement], Field(max_length=MAX_ITEMS)]


class LogBatch(BaseModel):
    """Request body: log lines to store."""

    items: Annotated[list[LogEntry], Field(max_length=MAX_ITEMS)]


class Accepted(BaseModel):
    """Response to a write: all items are committed."""

    accepted: int


class TraceList(BaseModel):
    """Response: traces."""

    items: list[Trace]


class TraceQuery(BaseModel):
    """Query parameters for traces."""

    model_config = ConfigDict(extra="forbid")

    provider: Name | None = None
    model: Name | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class CostQuery(BaseModel):
    """Query parameters for costs: buckets that begin at `from` or later, and before `to`."""

    model_config = ConfigDict(extra="forbid")

    to: Timestamp
    from_: Annotated[Timestamp, Field(alias="from")]
    bucket: Literal["hour"] = "hour"

    @field_validator("from_", mode="after")
    @classmethod
    def _period_is_not_empty(cls, value: datetime, info: ValidationInfo) -> datetime:
        if "to" in info.data and value >= info.data["to"]:
            raise ValueError("must be before 'to'")
        return value


class Cost(BaseModel):
    """Costs of one hour in US dollars, by provider, model, environment and user."""

    bucket: datetime
    provider: str
    model: str
    environment: str | None
    user_id: str | None
    request_count: int
    total_cost_usd: float | None
    prompt_cost_usd: float | None
    completion_cost_usd: float | None
    total_tokens: int | None


class CostList(BaseModel):
    """Response: costs."""

    items: list[Cost]


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
