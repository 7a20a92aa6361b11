"""A real HAProxy with its request counter, over instances of the test's own."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from observatory.nodes import Paths
from observatory.nodes.haproxy import SERVER, haproxy, runtime_socket, servers_file, weights_file
from observatory.nodes.request_metrics import PATH, request_metrics
from observatory.nodes.tls import combined_file
from observatory.runtime import LiveMap, LiveServers, Sandbox
from observatory.runtime.processes import handles
from observatory.security.certificates import issue, make_authority
from observatory.security.client_certificate import ClientCertificate
from observatory.settings import FleetName, LocalSettings, Ports
from observatory.waiting import wait_until
from tests.support.certificates import sandbox_certificate
from tests.support.ports import free_ports
from tests.support.sandboxes import start_unit

PATHS = Paths()
SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
HANGING_SECONDS = 120.0
GLOBAL_LOG = "    log stdout format raw daemon info\n"
ONE_THREAD = {GLOBAL_LOG: f"{GLOBAL_LOG}    nbthread 1\n"}


class Instance(ThreadingHTTPServer):
    """An instance: the last part of a path says how it answers, such as `/v1/traces/500`.

    `hangs` never answers, `ends` closes the connection instead, `cut` does so in the middle of the body.
    While `frozen`, it accepts connections and answers nothing.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port = int(self.server_address[1])
        self.frozen = False
        self.closed = threading.Event()
        self.paths: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Refuse connections from now on."""
        self.closed.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: HAProxy closes connections."""


class _Handler(BaseHTTPRequestHandler):
    server: Instance
    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # a response is one packet

    def do_GET(self) -> None:
        if self.server.frozen:
            self.server.closed.wait(HANGING_SECONDS)
        if self.path != "/health/ready":
            self.server.paths.append(self.path)
        self._respond(self.path.partition("?")[0].rpartition("/")[2])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def _respond(self, word: str) -> None:
        if word == "hangs":
            self.server.closed.wait(HANGING_SECONDS)
        if word not in {"hangs", "ends"}:
            self.send_response(int(word) if len(word) == 3 and word.isdecimal() else 200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"o" if word == "cut" else b"ok")
        if word in {"hangs", "ends", "cut"}:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the inherited name
        pass


@dataclass(frozen=True, kw_only=True)
class Balancer:
    """HAProxy and its request counter."""

    sandbox: Sandbox
    ports: Ports
    client: ClientCertificate
    fleets: Mapping[FleetName, Sequence[Instance]]

    @property
    def url(self) -> str:
        """The public address."""
        return f"http://127.0.0.1:{self.ports.service}"

    @property
    def live(self) -> LiveServers:
        """The servers of the running HAProxy."""
        return LiveServers(sandbox=self.sandbox, file=servers_file(PATHS), socket=runtime_socket(PATHS), patience=60)

    def weigh(self, green: int) -> None:
        """Set green's percentage."""
        live = LiveMap(sandbox=self.sandbox, file=weights_file(PATHS), socket=runtime_socket(PATHS), patience=60)
        live.write({"green": str(green), "blue": str(100 - green)})

    def reload(self) -> None:
        """Reload HAProxy, and wait until the new process serves."""
        before = self.loads()
        assert wait_until(self._listens_to_signals, 60)
        self.sandbox.supervisor.signal("haproxy", "USR2")
        assert wait_until(lambda: self.loads() > before, 60)

    def kill(self) -> None:
        """Kill HAProxy, and wait until the supervisor has started it again."""
        before, pid = self.loads(), self.sandbox.supervisor.status("haproxy").pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: self.loads() > before, 60)

    def _listens_to_signals(self) -> bool:
        """Return whether HAProxy handles signals: while it loads, and just after that, it ignores a reload."""
        return handles(self.sandbox.supervisor.status("haproxy").pid or 0, signal.SIGUSR2)

    def loads(self) -> int:
        """Return how often HAProxy has started or reloaded."""
        return sum("Loading success" in line for line in self.sandbox.supervisor.log_tail("haproxy", lines=1000))

    def metrics(self) -> str:
        """Return the metrics of the requests, as Prometheus reads them."""
        url = f"https://127.0.0.1:{self.ports.balancer_stats}{PATH}"
        return httpx.get(url, verify=self.client.context(), timeout=60).raise_for_status().text

    def requests(self) -> Counter[str]:
        """Return the counts of requests, by `fleet server route method status outcome`."""
        return Counter(
            {
                " ".join(re.findall(r'"([^"]*)"', labels)): int(value)
                for name, labels, value in SAMPLE.findall(self.metrics())
                if name == "balancer_requests_total"
            }
        )

    def settled(self) -> Counter[str]:
        """Return the counts with every request until now: a line arrives after its response."""

        def last() -> int:
            return sum(count for request, count in self.requests().items() if "/openapi.json" in request)

        before = last()
        httpx.get(f"{self.url}/openapi.json", timeout=60)
        assert wait_until(lambda: last() > before, 60)
        return self.requests()

    def bucket(self, route: str, method: str, limit: str) -> int:
        """Return how many requests of an operation took at most `limit` seconds."""
        return sum(
            int(value)
            for name, labels, value in SAMPLE.findall(self.metrics())
            if name == "balancer_request_seconds_bucket" and f'route="{route}",method="{method}",le="{limit}"' in labels
        )

    def state(self, server: str) -> str:
        """Return HAProxy's operational state of a server: `0` is DOWN, `2` is UP."""
        return next(each["srv_op_state"] for each in self.live.servers() if each["srv_name"] == server)


@contextmanager
def running_balancer(
    rootfs: Path, directory: Path, sizes: Mapping[FleetName, int], *, changed: Mapping[str, str] | None = None
) -> Iterator[Balancer]:
    """Run HAProxy over new instances; `changed` replaces texts of its configuration, such as a timeout.

    It has one thread: of two, one may still have the line of a response while the other's next request is counted.
    """
    ports = Ports(**free_ports())
    settings = LocalSettings(ports=ports)
    fleets = {fleet: [Instance() for _ in range(size)] for fleet, size in sizes.items()}
    instances = {fleet: tuple(each.port for each in listed) for fleet, listed in fleets.items()}
    sandbox = Sandbox(directory / "home", rootfs)
    sandbox.start()
    try:
        client = sandbox_certificate(sandbox, directory)
        own = issue(make_authority("test"), name=SERVER, hosts=["127.0.0.1"])
        sandbox.write_file(combined_file(PATHS, SERVER), own.combined)
        sandbox.write_file(weights_file(PATHS), "blue 100\ngreen 0\n")
        sandbox.write_file(servers_file(PATHS), LiveServers.content({}))
        unit = haproxy(settings, PATHS, instances=instances)
        texts = dict(unit.files)
        for old, new in (ONE_THREAD | dict(changed or {})).items():
            texts = {path: text.replace(old, new) for path, text in texts.items()}
        for each in (unit.model_copy(update={"files": texts}), request_metrics(settings, PATHS)):
            start_unit(sandbox, each)
        running = Balancer(sandbox=sandbox, ports=ports, client=client, fleets=fleets)
        assert wait_until(lambda: running.loads() == 1, 60)
        yield running
    finally:
        sandbox.stop()
        for instance in (each for listed in fleets.values() for each in listed):
            instance.close()
