"""Counts the requests of the balancer, from a line that HAProxy writes for each, and shows the counts to Prometheus.

    balancer_requests_total{fleet,server,route,method,status,outcome}
    balancer_request_seconds{fleet,server,route,method}      histogram: from the end of the request to the headers
    balancer_request_lines_total{kind}                       lines: counted, or unknown

HAProxy keeps the lines in a ring of its own memory and sends them to the unix socket `--lines`, so this program can be
slow, stopped or absent without an effect on requests; what does not fit the ring is not counted. GET on the unix socket
`--http` returns the metrics. Nobody but the stack's user reaches the sockets.

No label has a text of a client: an unknown route, method or status is `other`, and the rest are HAProxy's own names.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import socketserver
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

# The operations of the service, and what its machines serve beside them.
OPERATIONS = (
    *(("POST", f"/v1/{kind}") for kind in ("traces", "metrics", "logs")),
    *(("GET", path) for path in ("/v1/traces", "/v1/traces/{id}", "/v1/costs")),
    *(("GET", path) for path in ("/health/live", "/health/ready", "/openapi.json")),
)
OTHER, NONE = "other", "none"
MOST_STATUSES = 40  # the service has about twenty; a version that makes up more gets `other`
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
# HAProxy holds a request back until it is complete, if it fits the buffer. The time of a larger one would have the time
# in which the client sends it.
BUFFERED_BYTES = 12_288
LINE_BYTES, RECEIVED_BYTES = 16_384, 1 << 20
PAUSE_SECONDS = 0.05
CLIENT_SECONDS = 10

# The log-format of the frontend `service` in haproxy.cfg.j2; the path is last, because a long line is cut off.
_LINE = re.compile(
    r"\S+ \[\S+\] service~? (?P<backend>[\w-]+)/(?P<server>\S+) "
    r"-?\d+/-?\d+/-?\d+/(?P<response>-?\d+)/\S+ (?P<status>-?\d+) \S+ \S+ \S+ (?P<cause>.)(?P<phase>.)\S* "
    r"\S+ \S+ (?P<sent>\d+) (?P<chosen>\S+) \"(?P<method>[^\"]*)\" \"(?P<path>[^\"]*)"
)
_TRACE = re.compile(r"/v1/traces/[^/]+")
_BACKEND = "fleet_"
_METHODS = {route: {method for method, path in OPERATIONS if path == route} for _, route in OPERATIONS}

Labels = tuple[tuple[str, str], ...]


def outcome(cause: str, phase: str, *, reached: bool) -> str:
    """Return how a request ended, by the first two characters of HAProxy's termination state.

    `reached` is whether it was sent to an instance. See http://docs.haproxy.org/3.0/configuration.html#8.5.
    """
    if cause == "-" and reached:
        return "answered"
    if cause == "C" or (cause == "c" and reached):
        return "client_abort"
    if not reached or phase in "QC":
        return "refused"
    return "timeout" if cause == "s" else "server_abort"


class Counts:
    """The counts since the start."""

    def __init__(self) -> None:
        self._requests: Counter[Labels] = Counter()
        self._times: dict[Labels, list[int]] = {}
        self._seconds: Counter[Labels] = Counter()
        self._lines = Counter(counted=0, unknown=0)
        self._statuses: set[str] = set()
        self._started = time.time()
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        """Count the request of a line; a line of another form is only counted as such."""
        found = _LINE.match(line)
        with self._lock:
            self._lines["counted" if found else "unknown"] += 1
            if found:
                self._count(found.groupdict())

    def text(self) -> str:
        """Return the metrics in Prometheus' text format."""
        with self._lock:
            return "".join(f"{line}\n" for line in self._exposition())

    def _count(self, line: Mapping[str, str]) -> None:
        fleet = line["backend"].removeprefix(_BACKEND) if line["backend"].startswith(_BACKEND) else NONE
        reached = not line["server"].startswith("<")
        result = outcome(line["cause"], line["phase"], reached=reached)
        target = (("fleet", fleet), ("server", line["server"] if reached else NONE))
        request = _operation(line["method"], line["path"])
        answered = int(line["response"]) >= 0
        # HAProxy notes 400 for a client that has gone, which nobody received.
        status = (("status", NONE if result == "client_abort" and not answered else self._status(line["status"])),)
        self._requests[(*target, *request, *status, ("outcome", result))] += 1
        if fleet != NONE and line["chosen"] not in {fleet, "-"}:
            fallen = (("fleet", line["chosen"]), ("server", NONE))
            self._requests[(*fallen, *request, *status, ("outcome", "fallback"))] += 1
        if reached and answered and int(line["sent"]) <= BUFFERED_BYTES:
            self._observe((*target, *request), int(line["response"]) / 1000)

    def _status(self, text: str) -> str:
        if int(text) <= 0:
            return NONE
        if text not in self._statuses and len(self._statuses) >= MOST_STATUSES:
            return OTHER
        self._statuses.add(text)
        return text

    def _observe(self, labels: Labels, seconds: float) -> None:
        buckets = self._times.setdefault(labels, [0] * (len(BUCKETS) + 1))
        buckets[bisect_left(BUCKETS, seconds)] += 1
        self._seconds[labels] += seconds  # type: ignore[assignment]  # a Counter adds any number

    def _exposition(self) -> Iterator[str]:
        yield "# TYPE balancer_requests_total counter"
        for labels, count in self._requests.items():
            yield f"balancer_requests_total{_written(labels)} {count}"
        yield "# TYPE balancer_request_seconds histogram"
        for labels, buckets in self._times.items():
            count = 0
            for limit, inside in zip((*map(str, BUCKETS), "+Inf"), buckets, strict=True):
                count += inside
                yield f"balancer_request_seconds_bucket{_written((*labels, ('le', limit)))} {count}"
            yield f"balancer_request_seconds_sum{_written(labels)} {self._seconds[labels]:.3f}"
            yield f"balancer_request_seconds_count{_written(labels)} {count}"
        yield "# TYPE balancer_request_lines_total counter"
        for kind, count in self._lines.items():
            yield f"balancer_request_lines_total{_written((('kind', kind),))} {count}"
        yield "# TYPE process_start_time_seconds gauge"
        yield f"process_start_time_seconds {self._started:.3f}"


def _operation(method: str, path: str) -> Labels:
    """Return the route and the method as labels; what is no operation of the service is `other`."""
    route = "/v1/traces/{id}" if _TRACE.fullmatch(path) else path
    methods = _METHODS.get(route)
    return (
        ("route", OTHER if methods is None else route),
        ("method", method if methods and method in methods else OTHER),
    )


def _written(labels: Labels) -> str:
    """Return labels in Prometheus' format; no value has a character that needs an escape."""
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}"


class Lines(socketserver.BaseRequestHandler):
    """A connection of HAProxy, which has a new one after each reload."""

    counts: Counts

    def handle(self) -> None:
        """Count each line until HAProxy closes the connection.

        The pause collects the lines of `PAUSE_SECONDS`: waking up for each would take three times the processor time.
        """
        rest = b""
        while received := self.request.recv(RECEIVED_BYTES):
            *lines, rest = (rest + received).split(b"\n")
            for line in lines:
                self.counts.add(line.decode("utf-8", errors="replace"))
            rest = rest[:LINE_BYTES]
            time.sleep(PAUSE_SECONDS)


class Metrics(BaseHTTPRequestHandler):
    """The HTTP endpoint."""

    counts: Counts
    timeout = CLIENT_SECONDS

    def do_GET(self) -> None:
        """Return the metrics, whatever the path: HAProxy forwards only one."""
        body = self.counts.text().encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the inherited name
        """Log nothing."""


class Server(socketserver.ThreadingUnixStreamServer):
    """Handles the connections of one unix socket, each in a thread."""

    daemon_threads = True
    request_queue_size = 32


def serve(path: Path, handler: type[socketserver.BaseRequestHandler], counts: Counts) -> Server:
    """Return a server on the unix socket `path`, with its thread running; what was left there is replaced."""
    path.unlink(missing_ok=True)
    server = Server(str(path), type("Bound", (handler,), {"counts": counts}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    """Count for ever."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=Path, required=True, help="unix socket that HAProxy sends its lines to")
    parser.add_argument("--http", type=Path, required=True, help="unix socket of the metrics")
    options = parser.parse_args()
    counts = Counts()
    with contextlib.ExitStack() as servers:
        for path, handler in ((options.lines, Lines), (options.http, Metrics)):
            servers.enter_context(serve(path, handler, counts))
        threading.Event().wait()


if __name__ == "__main__":
    main()
