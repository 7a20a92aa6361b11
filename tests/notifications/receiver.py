"""A real HTTP server that receives notices, with responses that a test sets."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """The requests received, and the responses to come: (status, headers), then always 200.

    While `open` is not set, no request gets a response.
    """

    url: str = ""
    responses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    got: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)


@contextmanager
def receiver(*responses: tuple[int, dict[str, str]]) -> Iterator[Receiver]:
    """Run a receiver on a loopback port."""
    kept = Receiver(responses=list(responses))
    kept.open.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            kept.times.append(time.monotonic())
            kept.got.append(body)
            kept.open.wait()
            status, headers = kept.responses.pop(0) if kept.responses else (200, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the inherited name
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    kept.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield kept
    finally:
        kept.open.set()
        server.shutdown()
        server.server_close()
        thread.join()
