"""Structured logs: one JSON object per line on standard error.

The logs contain no prompts, keys or passwords. An exception is logged by its type, SQLSTATE and frames, not by its
message, because PostgreSQL's messages quote the rejected values.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import psycopg

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


class JsonFormatter(logging.Formatter):
    """Formats a record and the mapping in `extra={"fields": ...}` as one JSON object."""

    def __init__(self, **constant: str) -> None:
        super().__init__()
        self._constant = constant

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        entry: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._constant,
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1]:
            entry["exception"] = describe(record.exc_info[1])
            entry["frames"] = _frames(record.exc_info[2])
        return json.dumps(entry, ensure_ascii=False, default=str)


def describe(error: BaseException) -> str:
    """Return a description of an exception without the data that its message may quote."""
    name = type(error).__name__
    if isinstance(error, psycopg.Error):
        if error.sqlstate:
            return f"{name} (SQLSTATE {error.sqlstate})"
        # Errors of the client have no SQLSTATE; they name host, port and user, never data.
        return f"{name}: {error}".splitlines()[0]
    if isinstance(error, OSError):
        return f"{name}: {error}" if str(error) else name
    return name


def _frames(trace: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)]


def configure(*, level: str, **constant: str) -> None:
    """Write all logs to standard error as JSON, with the constant fields in every line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(**constant))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # At INFO it logs every use of a connection.
    logging.getLogger("psycopg.pool").setLevel(logging.WARNING)
