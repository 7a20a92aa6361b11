"""A status shows the version that an instance reports, beside the one of the rollout document."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from observatory.cli.stack import _running, _version
from observatory.platforms.local import status
from observatory.platforms.local.status import reported_version
from observatory.platforms.platform import DaemonStatus
from observatory.runtime import Sandbox
from observatory.runtime.process_tree import ProcessTree
from observatory.settings import LocalSettings, Ports


class _Instance(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("X-Observatory-Version", "v0.3.0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), _Instance) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def instance(version: str | None) -> DaemonStatus:
    return DaemonStatus(
        name="storage-blue-1",
        address="-",
        version="v0.3.0",
        pid=1,
        health="ready",
        memory_mb=1,
        running_version=version,
    )


def test_an_instance_is_asked_for_its_version(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "VERSION_TIMEOUT_S", 60)
    assert reported_version(port) == "v0.3.0"


def test_a_frozen_or_absent_instance_has_no_version() -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen:  # accepts, and never responds
        assert reported_version(frozen.getsockname()[1]) is None
    assert reported_version(1) is None  # nothing listens there


@pytest.mark.parametrize(
    ("content", "pid"), [(None, None), ("", None), ("\n", None), ("4711\n/srv/data/postgres\n", 4711)]
)
def test_a_server_that_just_ends_or_starts_has_no_process_yet(
    tmp_path: Path, content: str | None, pid: int | None
) -> None:
    """It removes its file while its port still accepts connections, and the next one makes the file empty."""
    sandbox = Sandbox(tmp_path, tmp_path)
    (tmp_path / "data/postgres").mkdir(parents=True)
    if content is not None:
        (tmp_path / "data/postgres/postmaster.pid").write_text(content)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        settings = LocalSettings(ports=Ports(postgres=listening.getsockname()[1]))
        found = status._postgres_status(sandbox, settings, {}, ProcessTree(states={}, children={}))
    assert (found.pid, found.health) == (pid, "ready" if pid else "not ready")


def test_another_version_than_wanted_is_shown_in_red() -> None:
    assert _version(instance("v0.3.0")) == "v0.3.0"
    other = _version(instance("v0.2.0"))
    assert (str(other), getattr(other, "style", "")) == ("v0.2.0 (v0.3.0 wanted)", "red")
    shown = _running([instance("v0.3.0"), instance("v0.2.0")])
    assert (shown.plain, shown.style) == ("v0.2.0 and v0.3.0", "red")
    assert _running([instance("v0.3.0")]).style == ""
