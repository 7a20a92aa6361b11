"""The log item: one log line of a client, in requests and in the table."""

from .fields import Identifier, JsonObject, Name, Text, TraceId
from .items import TimedItem
from .tables import Table


class LogEntry(TimedItem):
    """One log line, of a span or of none. The fields are the columns of `llm_logs`."""

    trace_id: TraceId | None = None
    span_id: Identifier | None = None
    log_level: Name
    message: Text
    provider: Name | None = None
    model: Name | None = None
    environment: Name | None = None
    attributes: JsonObject | None = None


LOG_ENTRIES = Table(
    name="llm_logs",
    columns=tuple(LogEntry.model_fields),
)
