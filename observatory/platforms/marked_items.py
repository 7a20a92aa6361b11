"""The marked items that verifications and probes write.

`observatory.database.verification_rows` finds and removes them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

TOKENS = 1  # of each span
COST = 3e-8  # USD, of one span of a verification: enough to find wrong costs, too little for any sum. Others cost 0.


def spans(*, mark: str, run: str, trace_id: str, now: datetime, texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a trace with one span for each text, by its id.

    Args:
        mark: provider and model.
        run: value of `environment`.
        trace_id: of all spans.
        now: of all spans.
        texts: the prompt of each span.
    """
    same = {
        "ts": now.isoformat(),
        "trace_id": trace_id,
        "span_name": "smoke",
        "provider": mark,
        "model": mark,
        "input_type": "text",
        "total_tokens": TOKENS,
        "total_cost_usd": 0.0,
        "duration_ms": 1,
        "status_code": "OK",
        "environment": run,
    }
    return [{**same, "span_id": span_id, "input_text": text} for span_id, text in texts.items()]


def measurement(*, mark: str, run: str, now: datetime) -> dict[str, Any]:
    """Return a metric."""
    labels = {"provider": mark, "model": mark, "user_id": run}
    return {"ts": now.isoformat(), "metric_name": mark, "metric_type": "gauge", **labels, "value": 0.0}


def line(*, mark: str, run: str, now: datetime, message: str) -> dict[str, Any]:
    """Return a log line."""
    return {"ts": now.isoformat(), "trace_id": run, "log_level": "DEBUG", "message": message, "provider": mark}


def repeated(answer: httpx.Response) -> int:
    """Return how many spans of a list are in it more than once; 0 where the answer is not a list of spans."""
    try:
        found = [(item["trace_id"], item["span_id"], item["ts"]) for item in answer.json()["items"]]
        return len(found) - len(set(found))
    except (ValueError, KeyError, TypeError):
        return 0


def is_json(answer: httpx.Response) -> bool:
    """Return whether an answer says that it is JSON: many clients refuse to parse it otherwise."""
    return str(answer.headers.get("Content-Type", "")).partition(";")[0].strip().lower() == "application/json"


def texts_of(answer: httpx.Response, trace_id: str) -> dict[str, str]:
    """Return the prompt of each span of a trace in a list, by its id; none where the answer is not a list of spans."""
    try:
        items = answer.json()["items"]
        return {item["span_id"]: item["input_text"] for item in items if item["trace_id"] == trace_id}
    except (ValueError, KeyError, TypeError):
        return {}


def compared(sent: Mapping[str, str], found: Mapping[str, str | None]) -> str:
    """Return how many spans were found, and how they differ from those that were sent, by id and text."""
    changed = sum(sent[span_id] != found[span_id] for span_id in sent.keys() & found.keys())
    missing, others = len(sent.keys() - found.keys()), len(found.keys() - sent.keys())
    parts = [
        f"{count} {what}"
        for count, what in (
            (len(sent) - missing - changed, "as they were sent"),
            (changed, "with another text"),
            (others, "that were not sent"),
            (missing, "missing"),
        )
        if count
    ]
    return f"{len(found)} of {len(sent)} spans: {', '.join(parts)}"


def random_key() -> str:
    """Return a key that no database has: a service must refuse it, whatever keys it has seen before."""
    return f"obs_{secrets.token_urlsafe(32)}"


def bad_bodies(span: Mapping[str, Any], now: datetime) -> list[tuple[str, str]]:
    """Return invalid requests, each with its description: JSON with a fault in a valid span, and what is no JSON."""
    without = {name: value for name, value in span.items() if name != "span_name"}
    late = {**span, "ts": (now + timedelta(days=2)).isoformat()}
    return [
        ("an item without a required field", _body([without])),
        ("a number as text", _body([{**span, "duration_ms": "long"}])),
        ("a time in two days", _body([late])),
        ("a valid and an invalid item", _body([dict(span), without])),
        ("a text instead of a list", json.dumps({"items": "none"})),
        ("half of a JSON document", _body([dict(span)])[:-4]),
    ]


def _body(items: list[dict[str, Any]]) -> str:
    return json.dumps({"items": items})
