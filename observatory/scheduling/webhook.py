"""The scheduler's endpoint for Alertmanager's alerts that roll back: on loopback, over TLS and with a token.

    POST /alerts    a notification of Alertmanager's webhook, with `Authorization: Bearer TOKEN`

It responds 200 after handling a notification, and 500 if that failed; Alertmanager then sends it again.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from observatory.nodes.programs.alert_receiver import TlsServer
from observatory.runtime import Sandbox, find_drift

BODY_BYTES = 1_000_000  # the same limit as the alert receiver's
REQUEST_SECONDS = 10  # without data from a client, after which its connection is closed
TOKEN_BYTES = 32
LOG = logging.getLogger("observatory.scheduler")

TakeAlerts = Callable[[Mapping[str, Any]], str]


def token(sandbox: Sandbox, file: str) -> str:
    """Return the secret in a private file below /srv, generated where there is none; the daemons' user may read it."""
    if find_drift(sandbox, {file: None}):
        sandbox.write_file(file, secrets.token_urlsafe(TOKEN_BYTES))
    return sandbox.host_path(file).read_text(encoding="ascii")


def serve(port: int, secret: str, take: TakeAlerts, *, certificate: Path, authority: Path) -> TlsServer:
    """Serve on a port of loopback, in threads that end with the process; return the server.

    Args:
        port: to listen on.
        secret: token that a request must carry.
        take: handles a notification, and returns what it did as text.
        certificate: PEM file of the server's certificate and its key, read for each connection.
        authority: PEM file of the authority of clients.

    Raises:
        OSError: the port is in use.
    """
    handler = type("BoundHandler", (_Handler,), {"expected": f"Bearer {secret}", "take": staticmethod(take)})
    server = TlsServer(port, handler, certificate=certificate, authority=authority)
    threading.Thread(target=server.serve_forever, name="rollback-webhook", daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    """The endpoint that the module's docstring describes."""

    expected: str
    take: TakeAlerts
    timeout = REQUEST_SECONDS

    def do_POST(self) -> None:
        """Check the token and the request, and handle the notification."""
        given = self.headers.get("Authorization", "")
        length = int(header) if (header := self.headers.get("Content-Length", "")).isdecimal() else 0
        if not hmac.compare_digest(given.encode(), self.expected.encode()):
            self._answer(HTTPStatus.UNAUTHORIZED, "invalid or missing token")
        elif self.path != "/alerts":
            self._answer(HTTPStatus.NOT_FOUND, "post to /alerts")
        elif not 0 < length <= BODY_BYTES:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send 1 to {BODY_BYTES} bytes")
        else:
            self._take(self.rfile.read(length))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the inherited name
        """Log no request; results are logged."""

    def _take(self, body: bytes) -> None:
        try:
            notification = json.loads(body)
        except ValueError:
            notification = None
        if not isinstance(notification, dict):
            self._answer(HTTPStatus.BAD_REQUEST, "a notification is a JSON object")
            return
        try:
            done = self.take(notification)
        except Exception as error:
            LOG.exception("an alert could not be handled")
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
            return
        LOG.info("alert: %s", done)
        self._answer(HTTPStatus.OK, done)

    def _answer(self, status: HTTPStatus, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
