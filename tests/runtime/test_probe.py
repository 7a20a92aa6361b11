"""A probe returns whether a daemon is ready, and the reason if it is not."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from observatory.runtime import Probe
from tests.support.ports import free_port


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("observatory.runtime.probe.ATTEMPT_SECONDS", 60.0)  # one attempt has to succeed


class Handler(BaseHTTPRequestHandler):
    """Answers 200 to /ready?full=1 alone."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready?full=1" else 503)
        self.end_headers()
        self.wfile.write(b'{"state": "running", "role": "replica"}')

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_http(port: int) -> None:
    assert Probe(http=f"http://127.0.0.1:{port}/ready?full=1").check()
    assert Probe(http=f"http://127.0.0.1:{port}/live")() == f"http://127.0.0.1:{port}/live answered 503"


def test_fields_of_a_response(port: int) -> None:
    url = f"http://127.0.0.1:{port}/ready?full=1"

    assert Probe(http=url, says={"state": "running", "role": "replica"}).check()
    assert Probe(http=url, says={"state": "running", "role": "primary"})() == f"{url}: role is replica"


def test_tcp(port: int) -> None:
    assert Probe(tcp=("127.0.0.1", port)).check()


def test_nothing_listens() -> None:
    port = free_port()
    for probe in (Probe(tcp=("127.0.0.1", port)), Probe(http=f"http://127.0.0.1:{port}/")):
        assert "refused" in str(probe())
        assert not probe.check()


def test_exactly_one_kind() -> None:
    with pytest.raises(ValueError, match="either http or tcp"):
        Probe()
