"""Lists of spans are complete: pages, their limits, and the marks of duplicates."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from service.storage_service.spans import MAX_PAGE_BYTES, MAX_SPANS
from tests.service.harness import StorageDatabase, item, post

NOW = datetime.now(UTC)
SPANS = """
    INSERT INTO llm_traces (ts, trace_id, span_id, span_name, provider, model, input_type, input_text, duration_ms,
                            status_code)
    SELECT now() - n * interval '1 ms', {trace}, 's' || n, 'chat', 'paged', {model}, 'text', {text}, 5, 'OK'
    FROM generate_series(1, {count}) n
"""


def insert(database: StorageDatabase, count: int, *, trace: str, model: str = "'m'", text: str = "'x'") -> None:
    database.execute(SPANS.format(trace=trace, model=model, text=text, count=count))


def pages(client: httpx.Client, path: str, **parameters: Any) -> Iterator[dict[str, Any]]:
    """Follow the cursors of a list to the last page."""
    following: str | None = ""
    while following is not None:
        cursor = {"cursor": following} if following else {}
        answer = client.get(path, params={**parameters, **cursor})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["items"]) <= parameters.get("limit", len(page["items"]))  # fewer while others take the memory
        yield page
        following = page["next"]


def test_every_span_of_a_long_trace_is_returned_in_pages(client: httpx.Client, database: StorageDatabase) -> None:
    insert(database, 10_000, trace="'ten-thousand'")

    found = list(pages(client, "/v1/traces/ten-thousand"))

    assert [len(page["items"]) for page in found] == [MAX_SPANS] * 10
    spans = [span for page in found for span in page["items"]]
    assert {span["span_id"] for span in spans} == {f"s{n}" for n in range(1, 10_001)}
    assert all(one["ts"] < two["ts"] for one, two in pairwise(spans))
    assert {page["duplicates"] for page in found} == {0}


@pytest.mark.parametrize("filters", [{"provider": "at-once"}, {"model": "at-once"}, {}])
def test_spans_of_one_instant_are_each_returned_once(
    client: httpx.Client, database: StorageDatabase, filters: dict[str, str]
) -> None:
    """Also spans that are stored meanwhile move none to another page."""
    if not database.execute("SELECT 1 FROM llm_traces WHERE provider = 'at-once' LIMIT 1"):
        ts = (NOW + timedelta(seconds=60)).isoformat()  # before all others in the list
        sent = (item(ts=ts, provider="at-once", model="at-once", trace_id=f"i{n % 10}") for n in range(300))
        post(client, *sent)
    seen: list[str] = []
    for page in pages(client, "/v1/traces", limit=70, **filters):
        seen += [span["span_id"] for span in page["items"] if span["provider"] == "at-once"]
        post(client, item(ts=(NOW + timedelta(seconds=90)).isoformat(), provider="late", model="late"))
        if len(seen) >= 300:
            break
    assert len(seen) == len(set(seen)) == 300


def test_page_of_long_texts_ends_before_its_limit_and_is_continued(
    client: httpx.Client, database: StorageDatabase
) -> None:
    long = "repeat('é', 100000)"  # 200 kB
    insert(database, 60, trace="'long'", text=long)

    for path in ("/v1/traces/long", "/v1/traces"):
        parameters: dict[str, str | int] = {} if path.endswith("long") else {"limit": 50, "provider": "paged"}
        first = client.get(path, params=parameters)
        assert 30 < len(first.json()["items"]) < 50
        assert len(first.content) <= MAX_PAGE_BYTES + 1000
        assert first.json()["next"]
    following = client.get("/v1/traces/long", params={"cursor": client.get("/v1/traces/long").json()["next"]})
    assert len(following.json()["items"]) + len(client.get("/v1/traces/long").json()["items"]) == 60


def test_a_span_larger_than_a_page_is_a_page(client: httpx.Client, database: StorageDatabase) -> None:
    if database.execute("SELECT 1 FROM pg_constraint WHERE conname = 'llm_traces_text_bytes'"):
        database.execute("ALTER TABLE llm_traces DROP CONSTRAINT llm_traces_text_bytes")  # as 007 does
    insert(database, 3, trace="'larger'", text=f"repeat('x', {MAX_PAGE_BYTES})")
    found = [span["span_id"] for page in pages(client, "/v1/traces/larger") for span in page["items"]]
    assert found == ["s3", "s2", "s1"]


@pytest.mark.parametrize("path", ["/v1/traces", "/v1/traces/refused", "/v1/costs"])
@pytest.mark.parametrize("cursor", ["", "x", "bm90LWEtY3Vyc29y", "🗼", "x" * 9000])
def test_a_forged_cursor_is_refused_with_the_remedy(
    client: httpx.Client, costs: StorageDatabase, path: str, cursor: str
) -> None:
    period = {"from": "2026-11-20T00:00:00Z", "to": "2026-11-21T00:00:00Z"} if path == "/v1/costs" else {}
    answer = client.get(f"{path}?cursor={quote(cursor)}", params=None if not period else {**period, "cursor": cursor})
    if path == "/v1/costs" and answer.status_code == 503:
        return  # this database is older than the aggregate, which is said first
    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert error["field"] == "cursor"


def test_a_cursor_of_another_list_is_refused(client: httpx.Client, database: StorageDatabase) -> None:
    insert(database, 3, trace="'cursors'")
    cursor = client.get("/v1/traces/cursors", params={"limit": 1}).json()["next"]
    assert cursor
    assert client.get("/v1/traces/cursors", params={"cursor": cursor}).status_code == 200
    for path in ("/v1/traces/other", "/v1/traces", "/v1/traces?provider=paged"):
        answer = client.get(path, params={**dict(httpx.URL(path).params), "cursor": cursor})
        assert answer.status_code == 400
        assert "belongs to a list with other parameters" in answer.json()["detail"]


def test_a_span_sent_with_another_time_is_marked_as_a_duplicate(
    client: httpx.Client, database: StorageDatabase
) -> None:
    times = [NOW - timedelta(days=3), NOW - timedelta(hours=1), NOW, NOW]
    sent = [item(trace_id="twice", span_id="a", provider="twice", ts=ts.isoformat()) for ts in times]
    sent += [item(trace_id="twice", span_id="b", provider="twice", ts=NOW.isoformat())]
    sent += [item(trace_id="other", span_id="a", provider="twice", ts=NOW.isoformat())]
    for one in sent:
        assert post(client, one).status_code == 201

    found = list(pages(client, "/v1/traces/twice", limit=2))

    spans = [(span["span_id"], span["duplicate"]) for page in found for span in page["items"]]
    assert spans == [("a", False), ("a", True), ("a", True), ("b", False)]
    assert [page["duplicates"] for page in found] == [2, 2]
    listed = client.get("/v1/traces", params={"provider": "twice"}).json()
    # The list considers two days: there the second is the first.
    marks = {(span["trace_id"], span["span_id"], span["ts"]): span["duplicate"] for span in listed["items"]}
    assert [key[:2] for key, mark in marks.items() if mark] == [("twice", "a")]
    assert (len(marks), listed["duplicates"]) == (5, 1)


def test_pages_of_a_long_trace_do_not_read_the_other_traces(client: httpx.Client, database: StorageDatabase) -> None:
    earlier = SPANS.replace("now()", "now() - interval '10 days'")
    database.execute(earlier.format(trace="'before' || n", model="'m'", text="'x'", count=150_000))
    insert(database, 5000, trace="'among-others'")
    database.execute("ANALYZE llm_traces")
    database.execute("SELECT pg_stat_statements_reset()")
    first = client.get("/v1/traces/among-others", params={"limit": 10}).json()
    client.get("/v1/traces/among-others", params={"limit": 10, "cursor": first["next"]})
    blocks = "SELECT query, (shared_blks_hit + shared_blks_read) / calls FROM pg_stat_statements"
    reads = {query: count for query, count in database.execute(blocks) if 'ORDER BY "ts", "span_id"' in query}
    assert len(reads) == 2
    others = (
        "SELECT sum(pg_relation_size(c::regclass)) / 8192 FROM show_chunks('llm_traces', now() - interval '9 days') c"
    )
    assert max(reads.values()) < database.execute(others)[0][0], reads


def test_reads_of_a_page_use_the_index_of_their_order(client: httpx.Client, database: StorageDatabase) -> None:
    insert(database, 20_000, trace="'t' || n", model="'m' || n % 7")
    database.execute("ANALYZE llm_traces")
    database.execute("SELECT pg_stat_statements_reset()")
    first = client.get("/v1/traces", params={"limit": 100, "provider": "paged"}).json()
    client.get("/v1/traces", params={"limit": 100, "provider": "paged", "cursor": first["next"]})
    blocks = "SELECT query, (shared_blks_hit + shared_blks_read) / calls FROM pg_stat_statements"
    reads = {query: count for query, count in database.execute(blocks) if 'ORDER BY "ts" DESC' in query}
    assert len(reads) == 2  # the first page, and the one after a position
    size = database.execute("SELECT sum(pg_relation_size(c::regclass)) / 8192 FROM show_chunks('llm_traces') c")[0][0]
    assert max(reads.values()) < size / 3, (reads, size)
