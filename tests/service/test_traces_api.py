import gzip
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.storage_service.bodies import MAX_BODY_BYTES
from service.storage_service.traces import Trace
from tests.service.conftest import StartService
from tests.service.harness import Background, StorageDatabase, item, post
from tests.support.waiting import until

EVERYTHING: dict[str, Any] = {
    "parent_span_id": "0011223344556677",
    "span_kind": "client",
    "input_text": "Wie heißt die Hauptstadt? 🗼\t\\N \\.\n",
    "input_messages": [{"role": "user", "content": '\\u0000 spelled out, and "quotes"'}],
    "output_text": "",
    "finish_reason": "stop",
    "prompt_tokens": 0,
    "completion_tokens": 2**31 - 1,
    "total_tokens": 5,
    "prompt_cost_usd": 0.00000001,
    "completion_cost_usd": 9999.99999999,
    "total_cost_usd": 0.1,
    "ttft_ms": 12,
    "error_message": "none",
    "user_id": "ünïcode",
    "session_id": "s 1",
    "environment": "production",
    "tags": ["a", "b,c", "{}", "NULL", "\\"],
    "attributes": {"nested": {"list": [1, 2.5, None, True]}, "": "empty key"},
    "sampled": False,
    "sample_rate": 0.1,
    "resource_attributes": {},
    "events": [],
    "links": [{"trace_id": "x"}],
}


def read(client: httpx.Client, trace_id: str) -> list[dict[str, Any]]:
    answer = client.get(f"/v1/traces/{trace_id}")
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def as_stored(sent: dict[str, Any]) -> dict[str, Any]:
    """Return the stored form of an item: with defaults, and the time as the service formats it."""
    defaults = {name: field.default for name, field in Trace.model_fields.items() if not field.is_required()}
    ts = datetime.fromisoformat(sent["ts"]).astimezone(UTC)
    return {**defaults, **sent, "ts": ts, "duplicate": False}


def with_time(stored: dict[str, Any]) -> dict[str, Any]:
    return {**stored, "ts": datetime.fromisoformat(stored["ts"])}


@pytest.mark.parametrize("fields", [{}, EVERYTHING], ids=["least", "everything"])
def test_stored_item_equals_the_sent_item(client: httpx.Client, fields: dict[str, Any]) -> None:
    sent = item(**fields)
    answer = post(client, sent)
    assert (answer.status_code, answer.json()) == (201, {"accepted": 1})
    (stored,) = read(client, sent["trace_id"])
    assert with_time(stored) == as_stored(sent)


def test_thousand_items_are_stored_in_one_request(client: httpx.Client, database: StorageDatabase) -> None:
    trace_id = item()["trace_id"]
    answer = post(client, *(item(trace_id=trace_id) for _ in range(1000)))
    assert (answer.status_code, answer.json()) == (201, {"accepted": 1000})
    assert database.count(trace_id) == 1000
    assert len(read(client, trace_id)) == 1000


def test_empty_batch_is_accepted(client: httpx.Client) -> None:
    assert post(client).json() == {"accepted": 0}


def test_repeated_span_counts_as_accepted_and_is_stored_once(client: httpx.Client, database: StorageDatabase) -> None:
    one, two = item(), item()
    assert post(client, one, one).json() == {"accepted": 2}
    again = post(client, two, {**one, "model": "other"})
    assert (again.status_code, again.json()) == (201, {"accepted": 2})
    assert (database.count(one["trace_id"]), database.count(two["trace_id"])) == (1, 1)
    assert read(client, one["trace_id"])[0]["model"] == one["model"]


def test_spans_are_returned_oldest_first(client: httpx.Client) -> None:
    now = datetime.now(UTC)
    trace_id = item()["trace_id"]
    times = [(now - timedelta(days=days)).isoformat() for days in (1, 3, 2)]
    post(client, *(item(trace_id=trace_id, ts=ts) for ts in times))
    spans = [with_time(span)["ts"].isoformat() for span in read(client, trace_id)]
    assert spans == sorted(times)


def test_invalid_item_is_named_and_nothing_is_stored(client: httpx.Client, database: StorageDatabase) -> None:
    good = item()
    answer = post(client, good, item(duration_ms=-1))
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "detail": "items[1].duration_ms: must be greater than or equal to 0",
        "errors": [{"item": 1, "field": "duration_ms", "reason": "must be greater than or equal to 0"}],
    }
    assert database.count(good["trace_id"]) == 0


def test_values_that_only_the_database_rejects_get_400(client: httpx.Client, database: StorageDatabase) -> None:
    database.execute("ALTER TABLE llm_traces ADD CONSTRAINT no_llamas CHECK (model <> 'llama') NOT VALID")
    try:
        answer = post(client, item(model="llama"))
    finally:
        database.execute("ALTER TABLE llm_traces DROP CONSTRAINT no_llamas")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"].endswith("no_llamas")


def test_too_many_items_are_rejected(client: httpx.Client) -> None:
    answer = post(client, *[item()] * 1001)
    assert answer.status_code == 413
    assert "at most 1000" in answer.json()["detail"]


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_too_large_body_is_rejected(client: httpx.Client, declared: bool) -> None:
    body = b" " * (MAX_BODY_BYTES + 1)

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(body), 2**20):
            yield body[start : start + 2**20]

    content = body if declared else chunks()
    answer = client.post("/v1/traces", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert str(MAX_BODY_BYTES) in answer.json()["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {},
        *({"Content-Type": "application/json", "Content-Encoding": encoding} for encoding in ("br", "gzip, gzip")),
    ],
    ids=["text", "none", "brotli", "twice"],
)
def test_body_of_another_type_or_encoding_is_rejected(client: httpx.Client, headers: dict[str, str]) -> None:
    assert client.post("/v1/traces", content=b'{"items": []}', headers=headers).status_code == 415


COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstandard.compress}


@pytest.mark.parametrize("encoding", COMPRESS)
@pytest.mark.parametrize("items", [1, 1000])
def test_compressed_body_is_stored(client: httpx.Client, database: StorageDatabase, encoding: str, items: int) -> None:
    trace_id = item()["trace_id"]
    text = json.dumps({"items": [item(trace_id=trace_id, input_text=item()["span_id"] * 100) for _ in range(items)]})
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding.upper()}
    answer = client.post("/v1/traces", content=COMPRESS[encoding](text.encode()), headers=headers)
    assert (answer.status_code, answer.json()) == (201, {"accepted": items})
    assert database.count(trace_id) == items


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b'{"items": []}'),
        ("gzip", gzip.compress(b'{"items": []}', mtime=0)[:-1]),
        ("gzip", gzip.compress(b'{"items": []}', mtime=0) * 2),
        ("gzip", b""),
        ("zstd", b'{"items": []}'),
        ("zstd", zstandard.compress(b'{"items": []}')[:-3]),
        ("zstd", b""),
    ],
)
def test_body_that_is_not_valid_in_its_encoding_is_rejected(client: httpx.Client, encoding: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    answer = client.post("/v1/traces", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == "body"


def test_invalid_json_is_rejected(client: httpx.Client) -> None:
    answer = client.post("/v1/traces", content=b'{"items": [', headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == "body"


def test_unknown_trace_is_not_found(client: httpx.Client) -> None:
    answer = client.get("/v1/traces/no-such-trace")
    assert answer.status_code == 404
    assert "no-such-trace" in answer.json()["detail"]


@pytest.mark.parametrize("trace_id", ["%00", "a%20b", "x" * 129])
def test_invalid_trace_id_is_named(client: httpx.Client, trace_id: str) -> None:
    answer = client.get(f"/v1/traces/{trace_id}")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == "trace_id"


def test_list_is_filtered_and_newest_first(client: httpx.Client) -> None:
    now = datetime.now(UTC)
    sent = [
        item(provider="listed", model=model, ts=(now - timedelta(hours=hours)).isoformat(), span_id=f"{hours}")
        for hours, model in ((3, "small"), (1, "large"), (2, "small"), (4, "small"))
    ]
    post(client, item(provider="other", model="small"), *sent)

    def spans(**parameters: Any) -> list[str]:
        answer = client.get("/v1/traces", params=parameters)
        assert answer.status_code == 200, answer.text
        return [found["span_id"] for found in answer.json()["items"]]

    assert spans(provider="listed") == ["1", "2", "3", "4"]
    assert spans(provider="listed", model="small", limit=2) == ["2", "3"]
    assert spans(provider="nobody") == []
    assert len(spans(limit=3)) == 3


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "ten"}, "limit"),
        ({"provider": ""}, "provider"),
        ({"model": "a\0"}, "model"),
        ({"modle": "gpt-4o"}, "modle"),
        ({"model": ["gpt-4o", "gpt-4o-mini"]}, "model"),
    ],
)
def test_invalid_parameter_is_named(client: httpx.Client, parameters: dict[str, Any], name: str) -> None:
    answer = client.get("/v1/traces", params=parameters)
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == [name]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("DELETE", "/v1/traces", 405), ("GET", "/v1", 404)],
)
def test_errors_of_the_framework_have_the_same_form(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["status"] == status


def test_write_over_the_limit_gets_503_with_retry_after(database: StorageDatabase, start: StartService) -> None:
    service = start(database, MAX_PENDING_WRITES="1")
    waiting = item()
    with database.locked_traces():
        background = Background(service.client(), waiting)
        until(lambda: service.metric("storage_pending_writes") == 1, "the first write to wait")
        answer = post(service.client(), item())
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert background.join().status_code == 201
    assert database.count(waiting["trace_id"]) == 1


def test_request_without_a_free_connection_gets_503_with_retry_after(
    database: StorageDatabase, start: StartService
) -> None:
    service = start(database, POOL_MAX="1", POOL_TIMEOUT_SECONDS="0.1")
    # The key is cached, so that the last request needs no connection for it.
    assert service.client().get("/v1/traces").status_code == 200
    with database.locked_traces():
        background = Background(service.client(), item())
        until(lambda: service.metric("storage_pending_writes") == 1, "the first write to wait")
        answer = service.client().get("/v1/traces")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert background.join().status_code == 201


def test_request_fails_when_the_database_does_not_respond_in_time(
    database: StorageDatabase, start: StartService
) -> None:
    service = start(database, DATABASE_TIMEOUT_SECONDS="0.2")
    sent = item()
    with database.locked_traces():
        answer = post(service.client(), sent)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert post(service.client(), sent).status_code == 201
    assert database.count(sent["trace_id"]) == 1


# jsonb stores 1e+22 as an integer, which is not equal to the float in Python.
FLOATS = st.floats(min_value=-1e6, max_value=1e6) | st.sampled_from([float("nan"), float("inf"), -0.0, 5e-324])
SCALARS = st.none() | st.booleans() | st.integers() | FLOATS | st.text(max_size=10)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(set(Trace.model_fields) - {"trace_id", "span_id", "ts"})), value=VALUES)
def test_any_value_is_stored_or_its_field_is_named(client: httpx.Client, name: str, value: Any) -> None:
    sent = item(**{name: value})
    answer = client.post(
        "/v1/traces", content=json.dumps({"items": [sent]}), headers={"Content-Type": "application/json"}
    )
    if answer.status_code == 201:
        (stored,) = read(client, sent["trace_id"])
        if not isinstance(value, float):
            assert with_time(stored) == as_stored(sent)
    else:
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["field"].partition(".")[0] == name
