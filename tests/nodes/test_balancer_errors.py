"""The balancer's own errors have the form of the service's: on a real HAProxy, with instances that misbehave."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from observatory.nodes import Paths
from observatory.nodes.haproxy import OWN_ERRORS, SERVER, haproxy, servers_file, weights_file
from observatory.nodes.tls import MONITORING, authority_file, combined_file
from observatory.runtime import Sandbox
from observatory.security.certificates import issue, make_authority
from observatory.settings import LocalSettings, Ports
from tests.support.ports import free_ports
from tests.support.sandboxes import start_unit

PATHS = Paths()
INVALID = b"this is no valid response\r\n\r\n"
READY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Instance:
    """An instance that is ready, and answers every other request with no valid response."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):  # HAProxy resets a check that it no longer waits for
                connection.sendall(READY if b"/health/ready" in connection.recv(4096) else INVALID)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture(scope="module")
def balancer(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    """HAProxy: the fleet green misbehaves, the fleet blue has no instance."""
    instance = Instance()
    ports = Ports(**free_ports())
    sandbox = Sandbox(tmp_path_factory.mktemp("balancer") / "home", rootfs)
    sandbox.start()
    try:
        authority = make_authority("test")
        sandbox.write_file(authority_file(PATHS), authority.certificate)
        for name in (SERVER, MONITORING):
            sandbox.write_file(combined_file(PATHS, name), issue(authority, name=name, hosts=["127.0.0.1"]).combined)
        sandbox.write_file(weights_file(PATHS), "green 0\n")
        sandbox.write_file(servers_file(PATHS), "")
        unit = haproxy(LocalSettings(ports=ports), PATHS, instances={"blue": (), "green": (instance.port,)})
        # The instance does not go down, also where the machine is too busy for the checks.
        files = {path: text.replace("fall 2", "fall 100") for path, text in unit.files.items()}
        start_unit(sandbox, unit.model_copy(update={"files": files}))
        yield ports
    finally:
        sandbox.stop()
        instance.close()


def _is_problem(answer: httpx.Response, status: int) -> bool:
    document = answer.json()
    assert set(document) == {"type", "title", "status", "detail"}
    return (answer.status_code, document["status"]) == (status, status) and (
        answer.headers["Content-Type"] == "application/problem+json"
    )


def test_without_an_instance(balancer: Ports) -> None:
    answer = httpx.get(f"http://127.0.0.1:{balancer.service}/v1/traces")
    assert _is_problem(answer, 503)
    assert answer.headers["Retry-After"] == "1"


def test_an_invalid_response(balancer: Ports) -> None:
    url = f"http://127.0.0.1:{balancer.preview}/v1/traces"
    assert _is_problem(httpx.get(url, headers={"X-Observatory-Fleet": "green"}), 502)


def test_other_paths_and_other_fleets(balancer: Ports) -> None:
    assert _is_problem(httpx.get(f"http://127.0.0.1:{balancer.service}/metrics"), 404)
    assert _is_problem(httpx.get(f"http://127.0.0.1:{balancer.preview}/health"), 400)


def test_no_own_error_is_html() -> None:
    unit = haproxy(LocalSettings(), PATHS, instances={"blue": (), "green": ()})
    config = unit.files["/srv/etc/haproxy/haproxy.cfg"]
    for status in OWN_ERRORS:
        assert f"http-error status {status} content-type application/problem+json" in config
