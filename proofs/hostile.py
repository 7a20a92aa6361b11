"""What a hostile local user sends to the listeners of a stack: dangerous requests, other protocols, garbage, silence.

Owns the requests, and the process that sends them under another user. Does not own what must hold after them.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401 - a lookup needs it, and the other user cannot read the files of this Python
import multiprocessing
import os
import random
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

ANSWER_S = 1.0
MOST_BYTES = 1_000_000  # of an answer
HELD = 20  # silent connections for each port
RANDOM, OVER_TLS = 40, 0.5  # random requests for each port, and the share that is sent over TLS
LOGINS = ("postgres", "migrator", "monitor", "pgbouncer", "app_a")
PATHS = (
    *("/", "/metrics", "/health", "/config", "/alerts", "/graph", "/status", "/weights", "/;csv", "/admin"),
    *("/-/reload", "/-/quit", "/-/ready", "/api/v1/status/config", "/api/v1/status/flags", "/api/v1/targets"),
    *("/api/v1/query?query=up", "/api/v1/admin/tsdb/snapshot", "/api/v1/admin/tsdb/clean_tombstones", "/federate"),
    *("/api/v1/admin/tsdb/delete_series?match[]=up", "/api/v1/read", "/api/v1/write", "/api/v1/otlp/v1/metrics"),
    *("/api/v2/silences", "/api/v2/alerts", "/api/v2/status", "/receivers/watchdog", "/receivers/delivery-slack"),
    *("/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline", "/debug/vars", "/debug/pprof/profile?seconds=1"),
    *("/scrape?target=redis://127.0.0.1:{valkey}&check-keys=*", "/probe?target=127.0.0.1:{postgres}"),
    *(
        "/patroni",
        "/cluster",
        "/history",
        "/restart",
        "/reload",
        "/reinitialize",
        "/failover",
        "/switchover",
        "/sigterm",
    ),
    *("/v3/kv/range", "/v3/kv/put", "/v3/kv/deleterange", "/v3/maintenance/snapshot", "/v3/auth/enable", "/v2/keys/"),
    *("/v1/traces?limit=10", "/v1/costs", "/v1/logs", "/openapi.json", "/docs", "/../../etc/passwd", "/%2e%2e/ca.key"),
    *("/runbooks/..%2f..%2ftls%2fmonitoring.pem", "/discover-cluster-nodes", "http://127.0.0.1:{patroni}/config"),
)
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
FORGED = "HostileForgedAlert"
LABELS = f'{{"alertname":"{FORGED}","stack":"local","fleet":"green","rollback":"true","severity":"critical"}}'
BODIES = (
    f'[{{"labels":{LABELS}}}]',
    f'{{"alerts":[{{"status":"firing","labels":{LABELS}}}]}}',
    (
        '{"matchers":[{"name":"stack","value":".*","isRegex":true,"isEqual":true}],"startsAt":"2020-01-01T00:00:00Z",'
        f'"endsAt":"2040-01-01T00:00:00Z","createdBy":"{FORGED}","comment":"hostile"}}'
    ),
    '{"ttl":1,"postgresql":{"parameters":{"archive_command":"/bin/true"},"callbacks":{"on_reload":"/bin/true"}}}',
    '{"key":"AA==","range_end":"AA=="}',
    '{"items":[{}]}',
)
VALKEY = (
    *("INFO", "FLUSHALL", "SHUTDOWN NOSAVE", "CONFIG GET *", "CONFIG SET dir /tmp", "KEYS *", "SCAN 0", "MONITOR"),
    *(
        "AUTH default default",
        "AUTH exporter exporter",
        "SLOWLOG GET",
        "ACL LIST",
        "DEBUG SEGFAULT",
        "CLIENT KILL TYPE normal",
    ),
    *("EVAL return(1) 0", "REPLICAOF 127.0.0.1 1", "MODULE LOAD /tmp/x.so", "SAVE"),
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is attacked: the ports by their names, the files and sockets of the stack, and its processes."""

    ports: dict[str, int]
    home: Path
    pids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What an attack got: how many requests were sent, all answers in one text, and what it should not have done."""

    requests: int
    answers: bytes
    broken: tuple[str, ...]


def attack(target: Target, *, uid: int, seed: int, requests: int) -> Result:
    """Attack a stack as another user, with at most `requests` requests on each port, and return what that got."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_as_user, args=(theirs, target, uid, seed, requests))
    process.start()
    theirs.close()
    with ours:
        found: Result = ours.recv()
    process.join()
    return found


def _as_user(pipe: Connection, target: Target, uid: int, seed: int, requests: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    broken = [*_files(target.home), *_processes(target.pids)]
    with ThreadPoolExecutor(len(target.ports)) as pool:
        found = pool.map(lambda name: _attack_port(name, target.ports, seed, requests), target.ports)
        answers = [answer for each in found for answer in each]
    pipe.send(Result(requests=len(answers), answers=b"\n".join(answers), broken=tuple(broken)))


def _attack_port(name: str, ports: dict[str, int], seed: int, requests: int) -> list[bytes]:
    """Send requests to one port while silent connections to it stay open; return the answers."""
    draw = random.Random(f"{seed} {name}")  # noqa: S311 - no secret
    with contextlib.ExitStack() as held:
        _hold(held, ports[name], draw)
        return [
            _exchange(ports[name], payload, secured=secured)
            for payload, secured in _payloads(name, ports, draw, requests)
        ]


def _payloads(name: str, ports: dict[str, int], draw: random.Random, requests: int) -> list[tuple[bytes, bool]]:
    """Return requests of a port in random order, each with whether it is sent over TLS."""
    everywhere = [path.format(**ports) if "{" in path else path for path in PATHS]
    payloads = [_http(draw.choice(METHODS[:5]), path, draw.choice(BODIES)) for path in everywhere]
    payloads += [f"{command}\r\nPING\r\n".encode() for command in VALKEY if name == "valkey"]
    payloads += [_startup(user) for user in LOGINS if name in ("postgres", "pgbouncer")]
    payloads += [_drawn(draw) for _ in range(RANDOM)]
    return [(payload, draw.random() < OVER_TLS) for payload in draw.sample(payloads, min(requests, len(payloads)))]


def _drawn(draw: random.Random) -> bytes:
    """Return a random request: any method and path, garbage, a huge header, a lie about the length, smuggling."""
    path = draw.choice(PATHS).replace("{", "%7b")
    kind = draw.randrange(6)
    if kind == 0:
        return draw.randbytes(draw.randrange(1, 4096))
    if kind == 1:
        return b"GET / HTTP/1.1\r\nX: " + b"a" * draw.randrange(70_000) + b"\r\n\r\n"
    if kind == 2:  # noqa: PLR2004
        length = draw.choice(("-1", "9" * 30, "1e3"))
        return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{{".encode()
    if kind == 3:  # noqa: PLR2004
        inner = _http("DELETE", "/api/v2/silences", "{}").decode()
        lengths = "Content-Length: 4\r\nTransfer-Encoding: chunked"
        return f"POST {path} HTTP/1.1\r\nHost: x\r\n{lengths}\r\n\r\n0\r\n\r\n{inner}".encode()
    return _http(draw.choice(METHODS), path, draw.choice(BODIES))


def _http(method: str, path: str, body: str) -> bytes:
    tokens = "Authorization: Bearer forged\r\nX-Observatory-Fleet: green\r\nContent-Type: application/json\r\n"
    first = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    return f"{first}{tokens}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def _startup(user: str) -> bytes:
    """Return PostgreSQL's first message without TLS, and a query that must not run."""
    words = b"\0".join((b"user", user.encode(), b"database", b"observatory", b"", b""))
    query = b"SELECT prompt FROM llm_traces\0"
    return struct.pack("!II", len(words) + 8, 196608) + words + b"Q" + struct.pack("!I", len(query) + 4) + query


def _exchange(port: int, payload: bytes, *, secured: bool) -> bytes:
    """Send a request, and return the answer as far as it comes."""
    received = b""
    with contextlib.suppress(OSError, ValueError):
        connection = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S)
        with contextlib.ExitStack() as closing:
            closing.enter_context(connection)
            if secured:
                connection = closing.enter_context(_untrusting().wrap_socket(connection))
            connection.sendall(payload)
            deadline = time.monotonic() + ANSWER_S
            while time.monotonic() < deadline and len(received) < MOST_BYTES:
                if not (part := connection.recv(65536)):
                    break
                received += part
                connection.settimeout(ANSWER_S / 4)
    return received


def _untrusting() -> ssl.SSLContext:
    """Return a context without a certificate that verifies nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _hold(held: contextlib.ExitStack, port: int, draw: random.Random) -> None:
    """Open connections that say little or nothing."""
    for start in draw.choices((b"", b"G", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n{", b"\x16\x03\x01"), k=HELD):
        with contextlib.suppress(OSError):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S))
            connection.sendall(start)


def _files(home: Path) -> Iterator[str]:
    """Yield what of the stack's files and sockets can be reached."""
    for path in (
        home,
        home / "etc",
        home / "etc/tls/monitoring.pem",
        home / "run/haproxy.sock",
        home / "data/postgres",
    ):
        with contextlib.suppress(OSError):
            path.stat()
            if path != home:
                yield f"{path} can be reached"
    with contextlib.suppress(OSError):
        next(home.iterdir(), None)
        yield f"{home} can be listed"


def _processes(pids: Iterable[int]) -> Iterator[str]:
    """Yield which of the stack's processes can be signalled or read."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, 0)
            yield f"process {pid} can be signalled"
        for name in ("environ", "mem", "maps"):
            with contextlib.suppress(OSError), Path(f"/proc/{pid}/{name}").open("rb") as file:
                if file.read(1):
                    yield f"/proc/{pid}/{name} can be read"
