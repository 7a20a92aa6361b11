"""Hostile bodies and slow ones are rejected, and hurt no other key: no write of another key fails meanwhile."""

import asyncio
import json
import secrets
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
import zstandard
from uvicorn.server import ServerState

from service.storage_service import connections
from service.storage_service.bodies import MAX_BODY_BYTES, MAX_NODES, Uploads, expanded
from service.storage_service.metrics import Metrics
from service.storage_service.problems import ContentTooLarge
from service.storage_service.settings import Settings
from tests.service.conftest import StartService
from tests.service.harness import Background, Service, StorageDatabase, environment, item, measurement, post
from tests.service.hostile import BODIES
from tests.support.waiting import PATIENCE_S, until

pytestmark = pytest.mark.slow

JSON = {"Content-Type": "application/json"}
QUERIES = 'storage_query_duration_seconds_count{query="traces"}'
REJECTED = {400, 408, 413, 422, 429, 503}
SLOW_CONNECTIONS = 32
TOO_MUCH = b"a" * connections.MAX_HEADER_BYTES
FIRST_BYTES = 4096
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def running(*actions: Callable[[], None]) -> Iterator[None]:
    """Repeat each action in a thread of its own while the block runs."""
    ended, failures = threading.Event(), list[BaseException]()

    def repeat(action: Callable[[], None]) -> None:
        try:
            while not ended.is_set():
                action()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=repeat, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not failures


def test_hostile_bodies_are_rejected_and_no_other_write_fails(service: Service, database: StorageDatabase) -> None:
    hostile, answers = database.add_key(), list[tuple[str, int]]()
    bodies = {name: make() for name, make in BODIES.items()}

    def attack(client: httpx.Client, names: list[str]) -> Callable[[], None]:
        def send() -> None:
            for name in names:
                answers.append((name, client.post("/v1/traces", content=bodies[name], headers=JSON).status_code))

        return send

    attacks = [attack(service.client(key=hostile), list(bodies)[number::4]) for number in range(4)]
    with running(*attacks):
        client = service.client()
        while len({name for name, _ in answers}) < len(bodies):
            assert post(client, item()).status_code == 201
            assert client.get("/health/live").status_code == 200
    assert {status for _, status in answers} <= REJECTED
    assert dict(answers)["5 million lists"] == 413
    assert service.metric("storage_upload_bytes") == 0


@pytest.mark.parametrize("name", ["5 million lists", "deep", "many items", "quotes"])
def test_body_with_too_many_values_is_rejected_before_it_is_parsed(name: str, database: StorageDatabase) -> None:
    settings = Settings.from_environment(environment(database, 8000, {}))

    async def expand() -> bytes:
        with Uploads(settings, metrics=Metrics(fleet="blue")).upload("a") as upload:
            return await expanded(BODIES[name](), "identity", upload)

    with pytest.raises(ContentTooLarge, match=f"more than {MAX_NODES} values"):
        asyncio.run(expand())


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda text: zlib.compress(text, wbits=31),
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("encoding", COMPRESS)
def test_compressed_body_that_expands_beyond_the_limit_is_rejected(client: httpx.Client, encoding: str) -> None:
    bomb = COMPRESS[encoding](b" " * (MAX_BODY_BYTES + 1))
    assert len(bomb) < MAX_BODY_BYTES // 500
    answer = client.post("/v1/traces", content=bomb, headers={**JSON, "Content-Encoding": encoding})
    assert (answer.status_code, answer.json()["detail"].split(";")[0]) == (
        413,
        f"the expanded body has more than {MAX_BODY_BYTES} bytes",
    )


@contextmanager
def connected(service: Service, number: int, start: bytes) -> Iterator[list[socket.socket]]:
    """Open connections that send the start of a request and wait."""
    with ExitStack() as stack:
        opened = []
        for _ in range(number):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            one.sendall(start)
            opened.append(one)
        yield opened


def start_of_request(*headers: str, body: str = "{") -> bytes:
    return "\r\n".join(["POST /v1/traces HTTP/1.1", "Host: localhost", *headers, "", body]).encode()


def keyed(key: str, *headers: str, body: str = "{") -> bytes:
    return start_of_request(f"Authorization: Bearer {key}", "Content-Type: application/json", *headers, body=body)


def test_unfinished_bodies_of_one_key_fail_no_write_of_another(database: StorageDatabase, start: StartService) -> None:
    service = start(database, MAX_UPLOADS="8", MAX_PENDING_WRITES="2", UPLOAD_SECONDS="600")
    slow = keyed(database.add_key(), "Content-Length: 1000")
    with connected(service, SLOW_CONNECTIONS, slow):
        until(lambda: service.metric("storage_uploads") == 8, "the bodies to be in progress")
        client = service.client()
        assert {post(client, item()).status_code for _ in range(20)} == {201}
        assert service.metric("storage_pending_writes") == 0
    until(lambda: service.metric("storage_uploads") == 0, "the bodies to end with their connections")


STARTS: dict[str, Callable[[StorageDatabase], list[bytes]]] = {
    "many keys": lambda database: [keyed(database.add_key(), "Content-Length: 1000") for _ in range(40)],
    "chunked": lambda database: [
        keyed(database.add_key(), "Transfer-Encoding: chunked", body="1\r\n{\r\n") for _ in range(4)
    ],
    "headers only": lambda database: [keyed(database.key, "Content-Length: 1000", body="")] * 4,
    "unfinished headers": lambda _database: [b"POST /v1/traces HTTP/1.1\r\nHost: local"] * 40,
    "no key": lambda _database: [start_of_request("Content-Length: 1000")] * 40,
    "unknown keys": lambda _database: [keyed(secrets.token_hex(8), "Content-Length: 1000") for _ in range(40)],
}


@pytest.mark.parametrize("kind", STARTS)
def test_unfinished_requests_of_any_kind_fail_no_write(
    database: StorageDatabase, start: StartService, kind: str
) -> None:
    service = start(database, MAX_UPLOADS="8", MAX_PENDING_WRITES="2", UPLOAD_SECONDS="600")
    with ExitStack() as stack:
        for text in STARTS[kind](database):
            stack.enter_context(connected(service, 4, text))
        client = service.client(key=database.add_key())
        assert {post(client, item()).status_code for _ in range(20)} == {201}


@pytest.mark.parametrize("body", ["{", "1\r\n{\r\n"], ids=["length", "chunked"])
def test_body_that_does_not_arrive_in_time_is_rejected(
    database: StorageDatabase, start: StartService, body: str
) -> None:
    service = start(database, UPLOAD_SECONDS="0.2")
    length = "Content-Length: 1000" if body == "{" else "Transfer-Encoding: chunked"
    with connected(service, 1, keyed(database.key, length, body=body)) as [slow]:
        slow.settimeout(PATIENCE_S)
        answer = slow.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()


def test_body_that_arrives_below_the_minimum_rate_is_rejected(database: StorageDatabase, start: StartService) -> None:
    """Each byte comes in time, and all of them do not."""
    service = start(database, UPLOAD_SECONDS="0.5", UPLOAD_BYTES_PER_SECOND="1024")
    with connected(service, 1, keyed(database.key, "Content-Length: 100000")) as [slow]:
        slow.settimeout(0.05)
        answer = b""

        def rejected() -> bool:
            nonlocal answer
            try:
                with suppress(ConnectionError):  # it was closed at this moment; the answer is there
                    slow.sendall(b" ")
                answer += slow.recv(10_000)
            except TimeoutError:
                return False
            return bool(answer)

        until(rejected, "the slow body to be rejected")
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_body_above_the_minimum_rate_may_take_long(database: StorageDatabase, start: StartService) -> None:
    service = start(database, UPLOAD_SECONDS="0.2", UPLOAD_BYTES_PER_SECOND="1024")
    body = json.dumps({"items": [item()]}).encode() + b" " * 200_000
    # The first part comes with the headers: the time for it begins with them.
    begun = keyed(database.key, f"Content-Length: {len(body)}", body=body[:100_000].decode())
    with connected(service, 1, begun) as [slow]:
        slow.settimeout(1)
        with pytest.raises(TimeoutError):
            slow.recv(1)
        slow.settimeout(PATIENCE_S)
        slow.sendall(body[100_000:])
        assert slow.recv(10_000).startswith(b"HTTP/1.1 201 ")


def test_key_with_its_share_of_bodies_gets_429_with_retry_after(database: StorageDatabase, start: StartService) -> None:
    service = start(database, MAX_UPLOADS="2", UPLOAD_SECONDS="600")
    with connected(service, 2, keyed(database.key, "Content-Length: 1000")):
        until(lambda: service.metric("storage_uploads") == 2, "the bodies to be in progress")
        answer = post(service.client(), item())
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert "send fewer requests at the same time" in answer.json()["detail"]


def test_memory_of_bodies_is_limited(database: StorageDatabase, start: StartService) -> None:
    """Both keys get a share, and each is rejected only above it."""
    service = start(database, MAX_UPLOAD_BYTES=str(MAX_BODY_BYTES), UPLOAD_SECONDS="600")
    first, second = database.add_key(), database.add_key()
    half = " " * (MAX_BODY_BYTES // 2)
    with connected(service, 1, keyed(first, f"Content-Length: {MAX_BODY_BYTES}", body=half + half[:-1000])):
        until(lambda: service.metric("storage_upload_bytes") > len(half), "most of the first body")
        size = MAX_BODY_BYTES // 2
        statuses = [
            service.client(key=key).post("/v1/traces", content=b'{"items": []}' + b" " * (size - 20), headers=JSON)
            for key in (first, second)
        ]
    assert [answer.status_code for answer in statuses] == [429, 201]


def test_writes_of_one_key_fail_no_write_of_another(database: StorageDatabase, start: StartService) -> None:
    """Not even when they wait for the database and fill every limit."""
    service = start(database, MAX_PENDING_WRITES="4", BUFFER_ITEMS="1000")
    hog = service.client(key=database.add_key())
    with database.locked_traces():
        waiting = [Background(hog, *(item() for _ in range(250))) for _ in range(4)]
        until(lambda: service.metric("storage_pending_writes") == 4, "the writes to wait")
        assert post(hog, item()).status_code == 503
        others = [Background(service.client(), item()) for _ in range(2)]
        until(lambda: service.metric("storage_pending_writes") == 6, "the writes of the other key to wait")
    assert {write.join().status_code for write in (*waiting, *others)} == {201}


def test_reads_of_one_key_fail_no_write_and_no_read_of_another(database: StorageDatabase, start: StartService) -> None:
    """Not even when they hang in the database."""
    service = start(database, POOL_MAX="5")
    hog, other = database.add_key(), service.client()
    assert other.get("/v1/traces").status_code == 200
    statuses: list[int] = []

    def read() -> None:
        statuses.append(service.client(key=hog).get("/v1/traces", timeout=PATIENCE_S).status_code)

    with database.locked_traces("ACCESS EXCLUSIVE"):
        readers = [threading.Thread(target=read) for _ in range(50)]
        for reader in readers:
            reader.start()
        until(lambda: service.metric("storage_pool_in_use") >= 2, "the reads to hang")
        assert {post(other, measurement(), path="/v1/metrics").status_code for _ in range(5)} == {201}
    assert other.get("/v1/traces").status_code == 200
    for reader in readers:
        reader.join()
    assert set(statuses) == {200}


async def _unfinished(_scope: Any, _receive: Any, _send: Any) -> None:
    await asyncio.Event().wait()


async def _end_of_connection(data: bytes) -> bytes:
    """Send data to a server without responses, and wait until it closes the connection."""
    config = uvicorn.Config(_unfinished, interface="asgi3", lifespan="off", log_config=None)
    config.load()
    server = await asyncio.get_running_loop().create_server(
        lambda: connections.BoundedProtocol(config, ServerState(), {}), "127.0.0.1", 0
    )
    client = socket.create_connection(server.sockets[0].getsockname())
    client.sendall(data[:FIRST_BYTES])  # which wait for the server, so that its time for them has not begun
    reader, writer = await asyncio.open_connection(sock=client)
    writer.write(data[FIRST_BYTES:])
    try:
        return await reader.read(1)
    except ConnectionResetError:  # the server closed it with data of the client unread
        return b""
    finally:
        writer.close()
        server.close()


@pytest.mark.parametrize(
    ("data", "timeout_s"),
    [
        (b"", 0.2),
        (b"GET / HTTP/1.1\r\nHost:", 0.2),
        (b"GET / HTTP/1.1\r\nA: " + TOO_MUCH, 600.0),
        (b"GET / HTTP/1.1\r\nA: " + TOO_MUCH + b"\r\n\r\n", 600.0),
        (CHUNKED + b"0\r\n" + b"A: b\r\n" * 20_000, 600.0),
        (CHUNKED + b"0\r\nA: " + TOO_MUCH * 5, 600.0),
        (CHUNKED + b"1;" + TOO_MUCH * 5, 600.0),
        (b"GET / HTTP/1.1\r\n\r\n" * (connections.MAX_PIPELINED + 2), 600.0),
    ],
    ids=["nothing", "unfinished", "too large", "complete", "trailers", "trailer", "extension", "pipelined"],
)
def test_connection_that_sends_too_little_or_too_much_besides_bodies_is_closed(
    data: bytes, timeout_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client needs no key for this, so it must cost nothing."""
    monkeypatch.setattr(connections, "HEADERS_TIMEOUT_S", timeout_s)
    assert asyncio.run(asyncio.wait_for(_end_of_connection(data), PATIENCE_S)) == b""


def test_connection_with_complete_headers_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_TIMEOUT_S", 2.0)
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(_end_of_connection(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 3))


def test_trailers_are_no_headers_of_the_request(service: Service, database: StorageDatabase) -> None:
    body = json.dumps({"items": [item()]})
    chunk = f"{len(body):x}\r\n{body}\r\n0\r\nContent-Encoding: br\r\n\r\n"
    with connected(service, 1, keyed(database.key, "Transfer-Encoding: chunked", body=chunk)) as [one]:
        one.settimeout(PATIENCE_S)
        assert one.recv(10_000).startswith(b"HTTP/1.1 201 ")


def test_some_pipelined_requests_are_answered_in_their_order(service: Service) -> None:
    paths = ["/health/live", "/nothing"] * (connections.MAX_PIPELINED // 2)
    requests = "".join(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n" for path in paths)
    answers = b""
    with connected(service, 1, requests.encode()) as [one]:
        one.settimeout(PATIENCE_S)
        while answers.count(b"HTTP/1.1 ") < len(paths):
            answers += one.recv(100_000)
    assert [answer[:3] for answer in answers.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404"] * (len(paths) // 2)


def read_request(key: str, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n".encode()


def add_large_spans(database: StorageDatabase, trace: str, megabytes: int) -> None:
    database.execute(
        "INSERT INTO llm_traces (ts, trace_id, span_id, span_name, provider, model, input_type, input_text,"
        " duration_ms, status_code) SELECT now() - n * interval '1 ms', %s, 's' || n, 'chat', 'large', 'm', 'text',"
        " repeat('x', 200000), 5, 'OK' FROM generate_series(1, %s * 5) n",
        trace,
        megabytes,
    )


def resident_mib(service: Service) -> float:
    return float(psutil.Process(service.pid).memory_info().rss) / 2**20


@contextmanager
def unread(service: Service, key: str, path: str, number: int) -> Iterator[list[socket.socket]]:
    """Request a page on many connections that keep the answers in a small buffer and never read them."""
    with ExitStack() as stack:
        opened = []
        for _ in range(number):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", service.port))
            one.sendall(read_request(key, path))
            opened.append(one)
        yield opened


def test_responses_that_are_not_read_take_a_bounded_part_of_memory_and_fail_no_other_request(
    database: StorageDatabase, start: StartService
) -> None:
    """Neither those of one key nor those of many keys together."""
    service = start(database, RESPONSE_SECONDS="600")
    add_large_spans(database, "unread", 10)
    other = service.client()
    assert other.get("/v1/traces/unread").status_code == 200
    before, bound = resident_mib(service), 2**26

    keys = [database.add_key(), *(database.add_key() for _ in range(8))]
    with ExitStack() as stack:
        stack.enter_context(unread(service, keys[0], "/v1/traces?provider=large", 40))
        until(lambda: service.metric(QUERIES, absent=0) == 40, "all pages to be read from the database")
        until(lambda: service.metric("storage_responses") < 40, "most responses of one key to be refused or sent")
        assert 0 < service.metric("storage_response_bytes") <= bound / 2
        for key in keys[1:]:
            stack.enter_context(unread(service, key, "/v1/traces?provider=large", 8))
        assert {post(other, item()).status_code for _ in range(20)} == {201}
        assert other.get("/v1/traces?limit=1").status_code == 200
        until(lambda: service.metric("storage_pool_in_use") == 0, "all pages to be read from the database")
        assert service.metric("storage_response_bytes") <= bound
        assert resident_mib(service) - before < 160
    until(lambda: service.metric("storage_responses") == 0, "the responses to end with their connections")
    assert service.metric("storage_response_bytes") == 0


def test_response_that_is_not_read_in_time_ends_with_its_connection(
    database: StorageDatabase, start: StartService
) -> None:
    service = start(database, RESPONSE_SECONDS="0.2", RESPONSE_BYTES_PER_SECOND=str(2**30))
    add_large_spans(database, "late", 20)
    counted = 'storage_http_requests_total{method="GET",route="/v1/traces/{trace_id}",status="499"}'
    with unread(service, database.key, "/v1/traces/late", 1) as [one]:
        until(lambda: service.metric(counted, absent=0) == 1, "the response to be given up")
        assert service.metric("storage_responses") == 0
        one.settimeout(PATIENCE_S)
        received = 0
        with suppress(ConnectionResetError):
            while part := one.recv(2**20):
                received += len(part)
        assert received < 2**23
    assert not any(line["level"] == "ERROR" for line in service.log)
    assert service.client().get("/health/live").status_code == 200


def test_response_above_the_minimum_rate_may_take_long(database: StorageDatabase, start: StartService) -> None:
    service = start(database, RESPONSE_SECONDS="0.2", RESPONSE_BYTES_PER_SECOND="1024")
    add_large_spans(database, "steady", 20)
    with unread(service, database.key, "/v1/traces/steady", 1) as [one]:
        one.settimeout(PATIENCE_S)
        received = one.recv(2**16)
        until(lambda: service.metric("storage_responses") == 1, "the response to be in progress")
        time.sleep(0.5)
        while not received.endswith(b"}") or b'"duplicates":0}' not in received[-30:]:
            received += one.recv(2**20)
    assert received.startswith(b"HTTP/1.1 200 ")


def test_key_with_its_share_of_responses_gets_429_with_retry_after(
    database: StorageDatabase, start: StartService
) -> None:
    service = start(database, MAX_RESPONSES="4", RESPONSE_SECONDS="600", RESPONSE_BYTES_PER_SECOND=str(2**30))
    add_large_spans(database, "share", 20)
    with unread(service, database.key, "/v1/traces/share", 3):
        until(lambda: service.metric("storage_responses") == 2, "the responses to be in progress")
        answer = service.client().get("/v1/traces?limit=1")
        assert service.client(key=database.add_key()).get("/v1/traces?limit=1").status_code == 200
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert "send fewer requests at the same time" in answer.json()["detail"]


@pytest.mark.parametrize("size", [1, 4, 100], ids=["bytewise", "in parts", "whole"])
@pytest.mark.parametrize("framing", ["length", "chunked", "none"])
def test_request_to_upgrade_the_protocol_is_answered_like_any_other(service: Service, framing: str, size: int) -> None:
    body = json.dumps({"items": [item()]}).encode()
    head = [f"Authorization: Bearer {service.key}", "Content-Type: application/json", "Host: a"]
    head += ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"]
    line, expected = "POST /v1/traces HTTP/1.1", b"201"
    if framing == "length":
        head.append(f"Content-Length: {len(body)}")
    elif framing == "chunked":
        head.append("Transfer-Encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        line, expected, body = "GET /v1/traces?limit=1 HTTP/1.1", b"200", b""
    request = "\r\n".join([line, *head, "", ""]).encode() + body
    requests = [request, request, request + b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"]
    answers = b""
    with connected(service, 1, b"") as [one]:
        one.settimeout(PATIENCE_S)
        for number, text in enumerate(requests, start=1):  # the connection is kept
            for begin in range(0, len(text), size):
                one.sendall(text[begin : begin + size])
            while answers.count(b"HTTP/1.1 ") < number or not answers.endswith(b"}"):
                answers += one.recv(100_000)
        while answers.count(b"HTTP/1.1 ") < 4:
            answers += one.recv(100_000)
    assert [answer[:3] for answer in answers.split(b"HTTP/1.1 ")[1:]] == [expected] * 3 + [b"200"]
