"""The read-through cache returns no outdated trace, and its failures fail no request."""

import asyncio
import itertools
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest

from service.storage_service.cache import MAX_VALUE_BYTES, TTL_S, Cache
from service.storage_service.metrics import Metrics
from service.storage_service.settings import Settings
from tests.service.conftest import StartService
from tests.service.harness import Service, StorageDatabase, environment, item, post, running_service
from tests.service.valkey import Valkey, valkey_server
from tests.support.ports import free_port
from tests.support.waiting import until

PERIOD = {"from": "2026-08-20T00:00:00Z", "to": "2026-08-21T00:00:00Z"}


@pytest.fixture(scope="module")
def valkey(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey_server(rootfs, tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="module")
def cached(database: StorageDatabase, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(database, tmp_path_factory.mktemp("cached"), valkey.settings) as service:
        service.wait_until_ready()
        until(lambda: in_use(service), "the cache to be in use")
        yield service


def in_use(service: Service) -> bool:
    return condition(service)["status"] == "ok"


def condition(service: Service) -> dict[str, str]:
    checks = httpx.get(f"http://127.0.0.1:{service.port}/health").json()["checks"]
    found: dict[str, str] = checks["cache"]
    return found


def hits(service: Service, query: str = "trace") -> float:
    return service.metric(f'storage_cache_hits_total{{query="{query}"}}')


def span_ids(client: httpx.Client, trace_id: str) -> set[str]:
    answer = client.get(f"/v1/traces/{trace_id}")
    assert answer.status_code == 200, answer.text
    return {span["span_id"] for span in answer.json()["items"]}


def test_second_response_comes_from_the_cache(client: httpx.Client, cached: Service) -> None:
    sent = item(input_text="Grüße")
    post(client, sent)  # by an instance without a cache, which writes no marker
    reader = cached.client()
    first = reader.get(f"/v1/traces/{sent['trace_id']}")

    def comes_from_the_cache() -> bool:  # which keeps it for seconds only, and a busy machine may take as long
        before = hits(cached)
        second = reader.get(f"/v1/traces/{sent['trace_id']}")
        assert (second.status_code, second.content) == (200, first.content)
        assert second.headers["content-type"] == first.headers["content-type"]
        return hits(cached) == before + 1

    until(comes_from_the_cache, "a response from the cache")


def test_a_page_of_a_trace_is_never_returned_for_another(client: httpx.Client, cached: Service) -> None:
    trace_id = item()["trace_id"]
    post(client, *(item(trace_id=trace_id) for _ in range(3)))
    reader = cached.client()

    def read(**parameters: str) -> tuple[int, str | None]:
        page = reader.get(f"/v1/traces/{trace_id}", params=parameters).json()
        return len(page["items"]), page["next"]

    before = hits(cached)
    two, following = read(limit="2")
    assert (two, read()) == (2, (3, None))
    assert following
    assert (read(limit="2"), read(cursor=following)) == ((2, following), (1, None))
    assert hits(cached) == before

    def comes_from_the_cache() -> bool:
        assert read() == (3, None)
        return hits(cached) == before + 1

    until(comes_from_the_cache, "the whole trace from the cache")


def test_the_first_page_of_a_long_trace_is_not_cached(cached: Service) -> None:
    trace_id = item()["trace_id"]
    least = {"span_name": "c", "provider": "p", "model": "m"}
    for _ in range(2):
        post(cached.client(), *(item(trace_id=trace_id, **least) for _ in range(501)))
    before = hits(cached)
    for _ in range(2):
        page = cached.client().get(f"/v1/traces/{trace_id}").json()
        assert (len(page["items"]), page["next"] is None) == (1000, False)
    assert hits(cached) == before


def test_cached_response_still_needs_a_valid_key(
    client: httpx.Client, cached: Service, database: StorageDatabase
) -> None:
    sent = item()
    post(client, sent)
    span_ids(cached.client(), sent["trace_id"])
    writer = cached.client(key=database.add_key(scopes="{write}"))
    assert writer.get(f"/v1/traces/{sent['trace_id']}").status_code == 403


def test_missing_trace_is_not_cached(client: httpx.Client, cached: Service) -> None:
    sent = item()
    assert cached.client().get(f"/v1/traces/{sent['trace_id']}").status_code == 404
    post(client, sent)
    assert span_ids(cached.client(), sent["trace_id"]) == {sent["span_id"]}


def test_every_instance_returns_a_new_span_at_once(
    client: httpx.Client, cached: Service, database: StorageDatabase, valkey: Valkey, start: StartService
) -> None:
    other = start(database, also=valkey.settings)
    until(lambda: in_use(other), "the cache to be in use")
    traces = [item() for _ in range(20)]
    post(client, *traces)
    writer, reader = cached.client(), other.client()
    for first in traces:
        assert span_ids(reader, first["trace_id"]) == {first["span_id"]}  # and caches it
        second = item(trace_id=first["trace_id"])
        assert post(writer, second).status_code == 201
        assert span_ids(reader, first["trace_id"]) == {first["span_id"], second["span_id"]}


def test_costs_are_cached(costs: StorageDatabase, valkey: Valkey, start: StartService) -> None:
    service = start(costs, also=valkey.settings)
    until(lambda: in_use(service), "the cache to be in use")
    client = service.client()
    first = client.get("/v1/costs", params=PERIOD)
    assert first.status_code == 200

    def comes_from_the_cache() -> bool:  # as above
        second = client.get("/v1/costs", params=PERIOD)
        assert (second.status_code, second.content) == (200, first.content)
        return hits(service, "costs") == 1

    until(comes_from_the_cache, "costs from the cache")
    for other in ({"to": "2026-08-22T00:00:00Z"}, {"bucket": "day"}, {"group_by": "model"}, {"limit": "1"}):
        assert client.get("/v1/costs", params={**PERIOD, **other}).status_code == 200
        assert hits(service, "costs") == 1


def with_cache(database: StorageDatabase, valkey: Valkey, use: Callable[[Cache], Awaitable[None]]) -> None:
    """Use a cache in this process."""

    async def run() -> None:
        limits = {"DATABASE_TIMEOUT_SECONDS": "600"}  # which a marker outlives
        settings = Settings.from_environment(environment(database, 8000, {**valkey.settings, **limits}))
        cache = Cache(settings, metrics=Metrics(fleet="blue"))
        await cache.open()
        try:
            while cache.condition:
                await asyncio.sleep(0.01)
            await use(cache)
        finally:
            await cache.close()

    asyncio.run(run())


def test_response_from_before_a_write_is_not_cached_after_it(database: StorageDatabase, valkey: Valkey) -> None:
    async def use(cache: Cache) -> None:
        assert await cache.get("trace", "raced") is None  # a reader queries the database...
        await cache.forget_traces(["raced"])  # ...meanwhile a span is written...
        await cache.put("trace", "raced", b"old")  # ...and the reader caches the old result
        assert await cache.get("trace", "raced") == b""

    with_cache(database, valkey, use)
    with valkey.client() as client:
        assert 0 < int(client.ttl("storage:1:trace:raced")) <= 601


def test_cached_responses_are_limited_in_size_and_time(
    database: StorageDatabase, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TTL_S["trace"] == 5
    monkeypatch.setitem(TTL_S, "trace", 600)  # a busy machine may take 5 s to read what it has written

    async def use(cache: Cache) -> None:
        await cache.put("trace", "large", b"x" * (MAX_VALUE_BYTES + 1))
        await cache.put("trace", "small", b"x")
        assert await cache.get("trace", "large") is None
        assert await cache.get("trace", "small") == b"x"

    with_cache(database, valkey, use)
    with valkey.client() as client:
        assert 0 < int(client.ttl("storage:1:trace:small")) <= 600


def test_wrong_cache_password_fails_no_request(
    database: StorageDatabase, valkey: Valkey, start: StartService, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("hunter2\n")
    service = start(database, also=valkey.settings, CACHE_PASSWORD_FILE=str(wrong))
    until(lambda: "Auth" in condition(service)["detail"], "the cause in /health")
    sent = item()
    assert post(service.client(), sent).status_code == 201
    assert span_ids(service.client(), sent["trace_id"]) == {sent["span_id"]}
    assert "hunter2" not in service.log_file.read_text()


def test_service_is_ready_without_its_cache(database: StorageDatabase, start: StartService) -> None:
    service = start(database, CACHE_URL=f"redis://127.0.0.1:{free_port()}/0")
    answers: list[httpx.Response] = []

    def cause_is_named() -> bool:
        answers.append(service.client().get("/health"))
        return bool(answers[-1].json()["checks"]["cache"]["detail"] == "ConnectionError")

    until(cause_is_named, "the cause in /health")
    assert (answers[-1].status_code, answers[-1].json()["status"]) == (200, "ok")
    sent = item()
    assert post(service.client(), sent).status_code == 201
    assert span_ids(service.client(), sent["trace_id"]) == {sent["span_id"]}


class Load:
    """Readers and writers that run until `stop`, and record the statuses of all responses."""

    def __init__(self, service: Service, trace_ids: list[str]) -> None:
        self.statuses: list[int] = []
        self._stop = Event()
        self._threads = [
            *(Thread(target=self._read, args=(service.client(), trace_ids)) for _ in range(2)),
            Thread(target=self._write, args=(service.client(),)),
        ]
        for thread in self._threads:
            thread.start()

    def more(self) -> None:
        """Wait for more responses."""
        before = len(self.statuses)
        until(lambda: len(self.statuses) > before + 50, "responses")

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _read(self, client: httpx.Client, trace_ids: list[str]) -> None:
        for trace_id in itertools.cycle(trace_ids):
            self.statuses.append(client.get(f"/v1/traces/{trace_id}").status_code)
            if self._stop.is_set():
                return

    def _write(self, client: httpx.Client) -> None:
        while not self._stop.is_set():
            self.statuses.append(post(client, *(item() for _ in range(10))).status_code)


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_cache_failure_fails_no_request_and_the_cache_is_used_again(
    fault: str, client: httpx.Client, database: StorageDatabase, valkey: Valkey, start: StartService
) -> None:
    service = start(database, also=valkey.settings, CACHE_TIMEOUT_SECONDS="0.02")
    sent = [item() for _ in range(5)]
    post(client, *sent)
    load = Load(service, [one["trace_id"] for one in sent])
    try:
        until(lambda: hits(service) > 0, "the cache to be used")
        valkey.kill() if fault == "killed" else valkey.signal(signal.SIGSTOP)
        until(lambda: not in_use(service), "the service to detect the failure")
        load.more()
        valkey.start() if fault == "killed" else valkey.signal(signal.SIGCONT)
        before = hits(service)
        until(lambda: hits(service) > before, "the cache to be used again")
        load.more()
    finally:
        load.stop()
    assert set(load.statuses) == {200, 201}
    assert service.metric("storage_cache_errors_total") >= 1
