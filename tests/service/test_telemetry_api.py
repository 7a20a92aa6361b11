"""Metrics and logs follow the rules of traces, and are stored in their tables."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.storage_service.fields import MAX_BIGINT, MAX_NAME, MAX_TEXT
from service.storage_service.items import TimedItem, Window
from service.storage_service.log_entries import LogEntry
from service.storage_service.measurements import Measurement
from service.storage_service.problems import InvalidRequest
from tests.service.harness import StorageDatabase, log_entry, measurement, parse_batch, post
from tests.service.test_items import JSON

METRICS, LOGS = "/v1/metrics", "/v1/logs"
MAKE = {METRICS: measurement, LOGS: log_entry}
MODELS: dict[str, type[TimedItem]] = {METRICS: Measurement, LOGS: LogEntry}
NOW = datetime.now(UTC)
WINDOW = Window(earliest=NOW - timedelta(days=37), latest=NOW + timedelta(days=1))

FULL_METRIC: dict[str, Any] = {
    "metric_type": "histogram",
    "environment": "production",
    "user_id": "ünïcode",
    "value": -1.5e15,
    "count": MAX_BIGINT,
    "sum": 0.1,
    "min": -0.5,
    "max": 5e-324,
    "tags": {"zone": ["a", None]},
}
FULL_LOG: dict[str, Any] = {
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "span_id": "b7ad6b7169203331",
    "message": "Grüße 🗼\t\\N \\.\n",
    "provider": "openai",
    "model": "gpt-4o",
    "environment": "production",
    "attributes": {"line": 5},
}


def stored(database: StorageDatabase, table: str, column: str, value: str) -> list[dict[str, Any]]:
    rows = database.execute(f"SELECT to_jsonb(t) FROM {table} t WHERE {column} = %s", value)
    return [row for (row,) in rows]


@pytest.mark.parametrize("fields", [{}, FULL_METRIC], ids=["least", "everything"])
def test_metric_is_stored_as_it_was_sent(client: httpx.Client, database: StorageDatabase, fields: Any) -> None:
    sent = measurement(metric_name=f"stored-{len(fields)}", **fields)
    answer = post(client, sent, path=METRICS)
    assert (answer.status_code, answer.json()) == (201, {"accepted": 1})
    (row,) = stored(database, "llm_metrics", "metric_name", sent["metric_name"])
    assert datetime.fromisoformat(row.pop("ts")) == datetime.fromisoformat(sent.pop("ts"))
    assert {name: value for name, value in row.items() if value is not None} == sent


@pytest.mark.parametrize("fields", [{}, FULL_LOG], ids=["least", "everything"])
def test_log_is_stored_as_it_was_sent(client: httpx.Client, database: StorageDatabase, fields: Any) -> None:
    sent = log_entry(**{**fields, "log_level": f"stored-{len(fields)}"})
    answer = post(client, sent, path=LOGS)
    assert (answer.status_code, answer.json()) == (201, {"accepted": 1})
    (row,) = stored(database, "llm_logs", "log_level", sent["log_level"])
    assert datetime.fromisoformat(row.pop("ts")) == datetime.fromisoformat(sent.pop("ts"))
    assert {name: value for name, value in row.items() if value is not None} == sent


def test_repeated_metrics_and_logs_are_stored_again(client: httpx.Client, database: StorageDatabase) -> None:
    metric, log = measurement(metric_name="repeated"), log_entry(log_level="repeated")
    assert post(client, metric, metric, path=METRICS).json() == {"accepted": 2}
    assert post(client, log, log, path=LOGS).json() == {"accepted": 2}
    assert len(stored(database, "llm_metrics", "metric_name", "repeated")) == 2
    assert len(stored(database, "llm_logs", "log_level", "repeated")) == 2


@pytest.mark.parametrize("path", [METRICS, LOGS])
def test_thousand_items_are_stored_and_one_more_is_rejected(client: httpx.Client, path: str) -> None:
    assert post(client, *[MAKE[path]()] * 1000, path=path).json() == {"accepted": 1000}
    assert post(client, *[MAKE[path]()] * 1001, path=path).status_code == 413


@pytest.mark.parametrize(("path", "days", "status"), [(METRICS, 36, 201), (METRICS, 38, 400), (LOGS, 38, 400)])
def test_age_is_limited_by_the_retention_of_the_table(client: httpx.Client, path: str, days: int, status: int) -> None:
    answer = post(client, MAKE[path](ts=(NOW - timedelta(days=days)).isoformat()), path=path)
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["errors"][0]["field"] == "ts"


@pytest.mark.parametrize("path", [METRICS, LOGS])
def test_key_and_scope_are_required(client: httpx.Client, database: StorageDatabase, path: str) -> None:
    sent = {"items": [MAKE[path]()]}
    assert client.post(path, json=sent, headers={"Authorization": ""}).status_code == 401
    reader = {"Authorization": f"Bearer {database.add_key(scopes='{read}')}"}
    assert client.post(path, json=sent, headers=reader).status_code == 403


@pytest.mark.parametrize(
    ("path", "name", "value", "reason"),
    [
        (METRICS, "ts", "2099-01-01T00:00:00Z", "is in the future"),
        (METRICS, "ts", "2021-01-01T00:00:00Z", "is older than the retention"),
        (METRICS, "metric_type", "summary", "must be 'counter', 'gauge' or 'histogram'"),
        (METRICS, "metric_name", "", "at least 1 character"),
        (METRICS, "value", float("nan"), "must be a finite number"),
        (METRICS, "value", "1", "must be a valid number"),
        (METRICS, "value", None, "must be a valid number"),
        (METRICS, "value", 10**400, "must be a valid number"),
        (METRICS, "count", MAX_BIGINT + 1, f"less than or equal to {MAX_BIGINT}"),
        (METRICS, "count", -1, "greater than or equal to 0"),
        (METRICS, "tags", ["a"], "must be a valid dictionary"),
        (METRICS, "labels", {}, "is not a known field"),
        (LOGS, "message", "a\0b", "U+0000"),
        (LOGS, "message", "x" * (MAX_TEXT + 1), f"at most {MAX_TEXT} bytes"),
        (LOGS, "log_level", "x" * (MAX_NAME + 1), f"at most {MAX_NAME} characters"),
        (LOGS, "trace_id", "a/b", "must match pattern"),
        (LOGS, "attributes", {"a": "\0"}, "U+0000"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_invalid_field_is_named_with_its_item(path: str, name: str, value: Any, reason: str) -> None:
    body = json.dumps({"items": [MAKE[path](), MAKE[path](**{name: value})]}).encode()
    with pytest.raises(InvalidRequest) as rejected:
        parse_batch(body, MODELS[path], WINDOW)
    (error,) = rejected.value.errors
    assert (error.item, error.field) == (1, name)
    assert reason in error.reason


@given(path=st.sampled_from([METRICS, LOGS]), field=st.integers(min_value=0), value=JSON)
def test_any_value_is_accepted_or_its_field_is_named(path: str, field: int, value: Any) -> None:
    names = sorted(MODELS[path].model_fields)
    name = names[field % len(names)]
    body = json.dumps({"items": [MAKE[path](**{name: value})]}).encode()
    try:
        (parsed,) = parse_batch(body, MODELS[path], WINDOW)
    except InvalidRequest as invalid:
        named = {error.field.partition(".")[0] for error in invalid.errors}
    else:
        named = {name} if hasattr(parsed, name) else set()
    assert named <= {name, "item", "body"}
