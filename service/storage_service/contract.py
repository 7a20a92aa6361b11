"""The bodies and parameters of the endpoints, from which their OpenAPI schemas are made."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from .fields import Name, Timestamp
from .items import MAX_ITEMS
from .log_entries import LogEntry
from .measurements import Measurement
from .traces import Trace


class TraceBatch(BaseModel):
    """Body of a write of traces."""

    items: Annotated[list[Trace], Field(max_length=MAX_ITEMS)]


class MeasurementBatch(BaseModel):
    """Body of a write of metrics."""

    items: Annotated[list[Measurement], Field(max_length=MAX_ITEMS)]


class LogBatch(BaseModel):
    """Body of a write of logs."""

    items: Annotated[list[LogEntry], Field(max_length=MAX_ITEMS)]


class Accepted(BaseModel):
    """Answer to a write: all items are committed."""

    accepted: int


class TraceList(BaseModel):
    """Traces that were asked for."""

    items: list[Trace]


class TraceQuery(BaseModel):
    """Parameters of a search for traces."""

    model_config = ConfigDict(extra="forbid")

    provider: Name | None = None
    model: Name | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class CostQuery(BaseModel):
    """Parameters of a question for costs: the buckets that begin at `from` or later, and before `to`."""

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
    """What the requests of one hour cost, US dollars, by provider, model, environment and user."""

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
    """Costs that were asked for."""

    items: list[Cost]


class Check(BaseModel):
    """One thing that the instance works with."""

    status: Literal["ok", "failed"]
    detail: str = ""


class Health(BaseModel):
    """State of this instance."""

    status: Literal["ok", "failed", "draining"]
    version: str
    fleet: str
    checks: dict[str, Check]


class Status(BaseModel):
    """State of this instance in one word."""

    status: Literal["ok", "failed", "draining"]
