"""Keeps what Alertmanager and deliveries send, and pages when its heartbeat stops: stands in for PagerDuty and Slack.

    POST /receivers/<name>      a notification, any JSON object, kept as one line of received.jsonl
    GET  /alerts?receiver=NAME  what was received, oldest first, as a JSON array; all receivers without the parameter
    GET  /runbooks/<Alert>      the alert's runbook
    GET  /health                200

It speaks TLS. Notifications are sent and read only with a client certificate of the stack's authority: any local user
can connect to the port. Runbooks and `/health` need none.

The Watchdog alert always fires; each of its notifications is a heartbeat. Without one for `SILENCE_SECONDS`, monitoring
is down, and the dead man's switch records a page. The time of the file `heartbeat` is that of the last one; the stack's
watcher, which runs outside of the sandbox, reads it and sends notices. Two files of `FILE_BYTES` are kept; of the
heartbeats one in `KEEP_SECONDS`, so that they do not push out alerts.

At most `STRANGERS` connections without a certificate are open, so that they leave room for Alertmanager's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

FILE_BYTES = 1_000_000
BODY_BYTES = 1_000_000  # a notification of a thousand alerts has about 800 kB
DRAIN_BYTES = 65536
REQUEST_SECONDS = 10
STRANGERS = 64
WATCHDOG, DEAD_MANS_SWITCH = "watchdog", "dead-mans-switch"
SILENCE_SECONDS = 45.0  # Alertmanager repeats the heartbeat every 10 to 20 s
KEEP_SECONDS = 300.0
HEARTBEAT_FILE = "heartbeat"
_RECEIVER = re.compile(r"/receivers/([a-z][a-z-]{0,62})")
_LENGTH = re.compile(r"[0-9]{1,12}")
_RUNBOOK = re.compile(r"/runbooks/([A-Za-z0-9]{1,63})(?:\.md)?")


class Store:
    """Notifications as JSON lines in `received.jsonl`; the file before it is kept as `received.1.jsonl`."""

    def __init__(self, directory: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self._file, self._older = directory / "received.jsonl", directory / "received.1.jsonl"
        self._file_bytes = file_bytes
        self._lock = threading.Lock()
        self._heartbeat, self._kept_heartbeat = directory / HEARTBEAT_FILE, -KEEP_SECONDS

    def add(self, receiver: str, notification: dict[str, Any]) -> None:
        """Keep one notification, with the time of its arrival."""
        record = {"received_at": datetime.now(UTC).isoformat(), "receiver": receiver, "notification": notification}
        with self._lock:
            if self._file.exists() and self._file.stat().st_size > self._file_bytes:
                self._file.replace(self._older)
            self._end_last_line()
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def add_heartbeat(self, notification: dict[str, Any]) -> None:
        """Note the time of a heartbeat, and keep the notification if the last kept one is old."""
        self._heartbeat.touch()
        if time.monotonic() - self._kept_heartbeat >= KEEP_SECONDS:
            self._kept_heartbeat = time.monotonic()
            self.add(WATCHDOG, notification)

    def records(self, receiver: str | None = None) -> list[dict[str, Any]]:
        """Return what is kept, oldest first: of one receiver, or of all."""
        with self._lock:
            kept = list(self._lines())
        return [record for record in kept if receiver in (None, record["receiver"])]

    def _end_last_line(self) -> None:
        """End the half line that a power cut or a full disk can leave, so that only that one is lost."""
        if not self._file.exists() or not self._file.stat().st_size:
            return
        with self._file.open("r+b") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")

    def _lines(self) -> Iterator[dict[str, Any]]:
        for file in (self._older, self._file):
            if file.exists():
                yield from (record for line in file.read_bytes().splitlines() if (record := _json(line)))


class DeadMansSwitch:
    """Records one page when no heartbeat came for `seconds`, and its end when one comes again."""

    def __init__(self, store: Store, *, seconds: float = SILENCE_SECONDS) -> None:
        self._store, self._seconds = store, seconds
        self._heard, self._silent = time.monotonic(), False
        self._lock = threading.Lock()

    def heartbeat(self) -> None:
        """Note that monitoring lives."""
        with self._lock:
            self._heard = time.monotonic()
            if self._silent:
                self._tell("resolved")
                self._silent = False

    def check(self) -> None:
        """Page, once, when the silence has lasted too long."""
        with self._lock:
            if not self._silent and time.monotonic() - self._heard > self._seconds:
                self._tell("firing")
                self._silent = True

    def watch(self) -> None:
        """Check for ever; a page that cannot be stored, as on a full disk, is recorded by a later check."""
        while True:
            time.sleep(self._seconds / 10)
            with contextlib.suppress(OSError):
                self.check()

    def _tell(self, status: str) -> None:
        labels = {"alertname": "WatchdogSilent", "severity": "critical"}
        self._store.add(DEAD_MANS_SWITCH, {"status": status, "alerts": [{"status": status, "labels": labels}]})


class Handler(BaseHTTPRequestHandler):
    """The endpoints that the module names."""

    store: Store
    switch: DeadMansSwitch
    runbooks: Path
    timeout = REQUEST_SECONDS  # of a client that says nothing more

    def do_GET(self) -> None:
        """Answer with what was received, a runbook, or that the program lives."""
        url = address(self.path)
        if url.path == "/health":
            self._answer(HTTPStatus.OK, {"status": "ok"})
        elif url.path == "/alerts" and not self._trusted:
            self._refuse()
        elif url.path == "/alerts":
            receiver = parse_qs(url.query).get("receiver", [None])[0]
            self._answer(HTTPStatus.OK, self.store.records(receiver))
        elif (page := _RUNBOOK.fullmatch(url.path)) and (file := self.runbooks / f"{page[1]}.md").is_file():
            self._send(HTTPStatus.OK, "text/markdown; charset=utf-8", file.read_bytes())
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": "known: /alerts, /runbooks/<Alert>, /health"})

    def do_POST(self) -> None:
        """Keep a notification; 200 only once it is written, so that Alertmanager sends again what was not."""
        receiver = _RECEIVER.fullmatch(self.path)
        length = body_length(self.headers)
        if not self._trusted:
            self._refuse()
        elif not receiver:
            self._answer(HTTPStatus.NOT_FOUND, {"error": "post to /receivers/<name>"})
        elif not 0 < length <= BODY_BYTES:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"send 1 to {BODY_BYTES} bytes"})
        elif notification := _json(self.rfile.read(length)):
            self._keep(receiver[1], notification)
        else:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": "a notification is a JSON object"})

    @property
    def _trusted(self) -> bool:
        """Whether the client has shown a certificate of the authority."""
        return isinstance(self.connection, ssl.SSLSocket) and bool(self.connection.getpeercert())

    def _refuse(self) -> None:
        self._answer(HTTPStatus.FORBIDDEN, {"error": "show a client certificate of the stack's authority"})
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the inherited name
        """Log nothing: what matters is in the store."""

    def _keep(self, receiver: str, notification: dict[str, Any]) -> None:
        if receiver == WATCHDOG:
            self.store.add_heartbeat(notification)
            self.switch.heartbeat()
        else:
            self.store.add(receiver, notification)
        self._answer(HTTPStatus.OK, {"status": "kept"})

    def _answer(self, status: HTTPStatus, document: Any) -> None:
        self._send(status, "application/json", json.dumps(document).encode())

    def _send(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def address(path: str) -> SplitResult:
    """Return the parts of a request's address; those of an empty one where it is invalid."""
    try:
        return urlsplit(path)
    except ValueError:
        return urlsplit("")


def body_length(headers: Message) -> int:
    """Return the length of a request's body; 0 where its header is missing or no usual number."""
    given = headers.get("Content-Length", "")
    return int(given) if _LENGTH.fullmatch(given) else 0


class Strangers:
    """Open connections whose clients have shown no certificate; one too many ends the oldest."""

    def __init__(self) -> None:
        self._open: dict[int, ssl.SSLSocket] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def with_one(self, connection: ssl.SSLSocket) -> Iterator[None]:
        """Count a connection during the block, or until it is removed."""
        with self._lock:
            self._open[id(connection)] = connection
            if len(self._open) > STRANGERS:
                oldest = self._open.pop(next(iter(self._open)))
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(oldest, socket.SHUT_RDWR)  # its thread reads the end, and closes it
        try:
            yield
        finally:
            self.remove(connection)

    def remove(self, connection: ssl.SSLSocket) -> None:
        """Count a connection no more."""
        with self._lock:
            self._open.pop(id(connection), None)


class TlsServer(ThreadingHTTPServer):
    """Speaks TLS; a client may show a certificate of the authority, and then it is verified.

    The files are read for each connection, so a renewed certificate needs no restart. The handshake runs in the
    connection's thread, so a silent client does not delay the others.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler], *, certificate: Path, authority: Path) -> None:
        self._certificate, self._authority, self._strangers = certificate, authority, Strangers()
        self._faults: set[type[BaseException] | None] = set()
        super().__init__(("127.0.0.1", port), handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands and handle the connection's requests; a client without TLS is disconnected."""
        with (
            contextlib.suppress(OSError),
            self._secured(request) as connection,
            self._strangers.with_one(connection),
        ):
            connection.do_handshake()
            if connection.getpeercert():
                self._strangers.remove(connection)
            super().finish_request(connection, client_address)
            _drain(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Write one fault of each kind to the log: a stranger that finds one must not fill the disk with it."""
        if (kind := sys.exc_info()[0]) not in self._faults:
            self._faults.add(kind)
            super().handle_error(request, client_address)

    def _secured(self, request: socket.socket) -> ssl.SSLSocket:
        request.settimeout(REQUEST_SECONDS)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self._authority))
        context.load_cert_chain(self._certificate)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)


def _drain(connection: socket.socket) -> None:
    """Read what the client still sends, within a limit: closing with unread data can lose the answer on its way."""
    connection.shutdown(socket.SHUT_WR)
    for _ in range(2 * BODY_BYTES // DRAIN_BYTES):
        if not connection.recv(DRAIN_BYTES):
            return


def _json(text: bytes) -> dict[str, Any] | None:
    """Return a JSON object, or None where the text is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def server(
    port: int,
    data: Path,
    runbooks: Path,
    *,
    certificate: Path,
    authority: Path,
    silence_seconds: float = SILENCE_SECONDS,
) -> TlsServer:
    """Return the server on a port of loopback, its dead man's switch already counting.

    `certificate` has the server's certificate with its key, `authority` that of the authority of clients, all PEM.
    """
    store = Store(data)
    switch = DeadMansSwitch(store, seconds=silence_seconds)
    threading.Thread(target=switch.watch, daemon=True).start()
    handler = type("BoundHandler", (Handler,), {"store": store, "switch": switch, "runbooks": runbooks})
    return TlsServer(port, handler, certificate=certificate, authority=authority)


def main() -> None:
    """Serve for ever."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True, help="directory of what was received")
    parser.add_argument("--runbooks", type=Path, required=True, help="directory of <Alert>.md")
    parser.add_argument("--certificate", type=Path, required=True, help="PEM file of the certificate and its key")
    parser.add_argument("--authority", type=Path, required=True, help="PEM file of the authority of clients")
    options = parser.parse_args()
    files = {"certificate": options.certificate, "authority": options.authority}
    server(options.port, options.data, options.runbooks, **files).serve_forever()


if __name__ == "__main__":
    main()
