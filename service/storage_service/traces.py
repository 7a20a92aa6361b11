"""The trace item: one span of a call to a language model, in requests, responses and the table."""

from typing import Literal

from .fields import Cost, Count, Fraction, Identifier, JsonArray, JsonObject, Name, Tags, Text, TraceId
from .items import TimedItem
from .tables import Table


class Trace(TimedItem):
    """One span; `ts` is its start. The fields are the columns of `llm_traces`."""

    trace_id: TraceId
    span_id: Identifier
    parent_span_id: Identifier | None = None
    span_name: Name
    span_kind: Name = "internal"
    provider: Name
    model: Name
    input_type: Name
    input_text: Text | None = None
    input_messages: JsonArray | None = None
    output_text: Text | None = None
    finish_reason: Name | None = None
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    total_tokens: Count | None = None
    prompt_cost_usd: Cost | None = None
    completion_cost_usd: Cost | None = None
    total_cost_usd: Cost | None = None
    duration_ms: Count
    ttft_ms: Count | None = None
    status_code: Literal["OK", "ERROR", "UNSET"]
    error_message: Text | None = None
    user_id: Name | None = None
    session_id: Name | None = None
    environment: Name | None = None
    tags: Tags | None = None
    attributes: JsonObject | None = None
    sampled: bool = True
    sample_rate: Fraction | None = None
    resource_attributes: JsonObject | None = None
    events: JsonArray | None = None
    links: JsonArray | None = None


TRACES = Table(
    name="llm_traces",
    columns=tuple(Trace.model_fields),
    json_columns=frozenset({"input_messages", "attributes", "resource_attributes", "events", "links"}),
    key=("trace_id", "span_id", "ts"),
    # What the start of a span has, when its end may have been stored before it.
    not_given={"span_kind": "internal", "sampled": True, "status_code": "UNSET", "duration_ms": 0},
)
