import gzip
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.storage_service.bodies import MAX_BODY_BYTES
from service.storage_service.fields import MAX_TEXT
from service.storage_service.traces import Trace
from tests.service.conftest import StartService
from tests.service.harness import (
    Background,
    Service,
    StorageDatabase,
    item,
    log_entry,
    measurement,
    post,
    storage_database,
)
from tests.support.postgres import PostgresServer
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


REPEATED = 'storage_items_repeated_total{table="llm_traces"}'
END: dict[str, Any] = {
    **EVERYTHING, "duration_ms": 900, "status_code": "ERROR", "model": "gpt-4o-2024-08-06", "span_name": "chat"
}  # fmt: skip


def test_span_that_is_sent_at_its_start_and_at_its_end_is_one_row(service: Service, database: StorageDatabase) -> None:
    client, before = service.client(), service.metric(REPEATED)
    start = item(duration_ms=0, status_code="UNSET", attributes={"a": 1}, user_id="u", tags=["kept"])
    end = {**start, **END, "user_id": None, "tags": None, "attributes": {"b": 2}}
    assert post(client, start).status_code == 201
    assert post(client, end, item()).json() == {"accepted": 2}
    (stored,) = read(client, start["trace_id"])
    assert with_time(stored) == as_stored({**end, "user_id": "u", "tags": ["kept"]})
    assert service.metric(REPEATED) == before + 1


def test_start_that_arrives_after_the_end_adds_only_what_is_missing(client: httpx.Client) -> None:
    end = item(**{**END, "user_id": None})
    start = item(**{key: end[key] for key in ("ts", "trace_id", "span_id", "model")}, duration_ms=0,
                 status_code="UNSET", user_id="u")  # fmt: skip
    for one in (end, start):
        assert post(client, one).status_code == 201
    (stored,) = read(client, end["trace_id"])
    assert with_time(stored) == as_stored({**end, "user_id": "u"})


def test_span_twice_in_one_batch_is_one_row(service: Service) -> None:
    client, before = service.client(), service.metric(REPEATED)
    start = item(duration_ms=0, status_code="UNSET", user_id="u")
    end = {**start, **END, "user_id": None}
    assert post(client, start, item(), end).json() == {"accepted": 3}
    (stored,) = read(client, start["trace_id"])
    assert with_time(stored) == as_stored({**end, "user_id": "u"})
    assert service.metric(REPEATED) == before + 1


def test_batch_that_is_sent_again_changes_no_row(client: httpx.Client, database: StorageDatabase) -> None:
    batch = [item(**END), item()]
    for _ in range(3):
        assert post(client, *batch).json() == {"accepted": 2}
    versions = "SELECT xmin FROM llm_traces WHERE trace_id = %s"
    assert len({database.execute(versions, one["trace_id"])[0] for one in batch}) == 1
    assert database.count(batch[0]["trace_id"]) == 1


def test_same_span_at_another_time_is_another_row(client: httpx.Client) -> None:
    now = datetime.now(UTC)
    one = item(ts=now.isoformat())
    assert post(client, one, {**one, "ts": (now - timedelta(seconds=1)).isoformat()}).json() == {"accepted": 2}
    assert len(read(client, one["trace_id"])) == 2


def test_role_without_the_privilege_to_update_keeps_the_first_of_a_repeated_span(
    postgres: PostgresServer, start: StartService, tmp_path: Path
) -> None:
    """As on a stack of release 0.1, before its privileges are granted again."""
    with storage_database(postgres, tmp_path) as database:
        database.execute(f"REVOKE UPDATE ON llm_traces FROM {database.role}")
        service = start(database)
        one = item()
        for model in ("first", "second"):
            assert post(service.client(), {**one, "model": model}).status_code == 201
        assert database.execute("SELECT model FROM llm_traces") == [("first",)]
        service.close()


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


def test_each_item_has_its_own_result_on_request(client: httpx.Client, database: StorageDatabase) -> None:
    good, bad = item(), item(duration_ms=-1)
    answer = client.post("/v1/traces", params={"results": "items"}, json={"items": [bad, good, "x", good]})
    assert answer.status_code == 207
    assert answer.json() == {
        "accepted": 2,
        "rejected": 2,
        "items": [
            {
                "status": "rejected",
                "errors": [{"item": 0, "field": "duration_ms", "reason": "must be greater than or equal to 0"}],
            },
            {"status": "accepted"},
            {"status": "rejected", "errors": [{"item": 2, "field": "item", "reason": "must be an object"}]},
            {"status": "accepted"},
        ],
    }
    assert (database.count(good["trace_id"]), database.count(bad["trace_id"])) == (1, 0)


@pytest.mark.parametrize("path", ["/v1/metrics", "/v1/logs"])
def test_results_of_items_that_are_all_valid_have_status_201(client: httpx.Client, path: str) -> None:
    one = measurement() if path == "/v1/metrics" else log_entry()
    answer = client.post(path, params={"results": "items"}, json={"items": [one]})
    assert (answer.status_code, answer.json()) == (
        201,
        {"accepted": 1, "rejected": 0, "items": [{"status": "accepted"}]},
    )


def test_results_name_every_invalid_item_of_a_large_batch(client: httpx.Client) -> None:
    answer = client.post("/v1/traces", params={"results": "items"}, json={"items": [{}] * 1000})
    results = answer.json()["items"]
    assert (answer.status_code, answer.json()["accepted"], len(results)) == (207, 0, 1000)
    assert all(len(result["errors"]) == 3 for result in results)


@pytest.mark.parametrize("parameters", [{"results": "all"}, {"result": "items"}])
def test_other_parameters_of_a_write_are_rejected(client: httpx.Client, parameters: dict[str, str]) -> None:
    assert client.post("/v1/traces", params=parameters, json={"items": []}).status_code == 400


def test_texts_have_2_mib_by_default_and_another_limit_by_setting(
    postgres: PostgresServer, start: StartService, tmp_path: Path
) -> None:
    large = item(input_text="x" * MAX_TEXT, input_messages=["x" * (MAX_TEXT - 4)])
    with storage_database(postgres, tmp_path, schema=7) as database:
        assert post(start(database).client(), large).status_code == 201
        answer = post(start(database, MAX_TEXT_BYTES="1024").client(), large)
    assert [error["field"] for error in answer.json()["errors"]] == ["input_text", "input_messages"]
    assert answer.json()["errors"][0]["reason"] == "must have at most 1024 bytes"


@pytest.mark.parametrize("path", ["/v1/traces/", "/v1/metrics/", "/health/live/", "/v1/traces//"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_path_with_a_final_slash_is_not_found_and_never_redirected(
    client: httpx.Client, method: str, path: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 404
    assert "location" not in answer.headers
    assert answer.json()["detail"] == "no path ends with a slash; send the request to the path without it"


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


def test_zstd_body_without_its_check_sum_is_not_stored(client: httpx.Client) -> None:
    body = zstandard.ZstdCompressor(write_checksum=True).compress(json.dumps({"items": [item()]}).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "zstd"}
    for size in (1, 4):
        answer = client.post("/v1/traces", content=body[:-size], headers=headers)
        assert (answer.status_code, answer.json()["detail"]) == (400, "body: is not zstd: it is incomplete")


@pytest.mark.parametrize("trace_id", [".", ".."])
def test_trace_id_that_a_url_cannot_have_is_rejected_for_its_item_alone(client: httpx.Client, trace_id: str) -> None:
    good, bad = item(trace_id="..."), item(trace_id=trace_id, span_id=".", parent_span_id="..")
    answer = client.post("/v1/traces", params={"results": "items"}, json={"items": [good, bad]})
    assert answer.status_code == 207
    (error,) = answer.json()["items"][1]["errors"]
    assert (error["item"], error["field"]) == (1, "trace_id")
    assert "must not be '.' or '..'" in error["reason"]
    assert read(client, "...")


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
    service = start(database, POOL_MAX="1", POOL_TIMEOUT_SECONDS="2")  # for the first write, too
    # The key is cached, so that the last request needs no connection for it.
    until(lambda: service.client().get("/v1/traces").status_code == 200, "the pool to have its connection")
    with database.locked_traces():
        background = Background(service.client(), item())
        until(lambda: database.blocked() == 1, "the first write to hold the connection")
        answer = service.client().get("/v1/traces")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert background.join().status_code == 201


def test_request_fails_when_the_database_does_not_respond_in_time(
    database: StorageDatabase, start: StartService
) -> None:
    service = start(database, DATABASE_TIMEOUT_SECONDS="0.2")
    client, sent = service.client(), item()
    with database.locked_traces():
        answer = post(client, sent)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    # On a busy machine a write without a lock may take longer, too.
    until(lambda: post(client, sent).status_code == 201, "the database to respond in time")
    assert database.count(sent["trace_id"]) == 1


# jsonb stores 1e+22 as an integer, which is not equal to the float in Python.
FLOATS = st.floats(min_value=-1e6, max_value=1e6) | st.sampled_from([float("nan"), float("inf"), -0.0, 5e-324])
SCALARS = st.none() | st.booleans() | st.integers() | FLOATS | st.text(max_size=10)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
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
