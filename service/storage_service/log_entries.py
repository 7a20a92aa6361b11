"""The log item: one line that a client logged, as clients send it and as it is stored."""

from .fields import Identifier, JsonObject, Name, Text
from .items import TimedItem
from .tables import Table


class LogEntry(TimedItem):
    """One line of a log, of a span or of none. The fields are the columns of `llm_logs`."""

    trace_id: Identifier | None = None
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
    json_columns=frozenset({"attributes"}),
)
