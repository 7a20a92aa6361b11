"""The scheduler's endpoint for Alertmanager's alerts that roll back: on loopback, over TLS and with a token.

    POST /alerts    a notification of Alertmanager's webhook, with `Authorization: Bearer TOKEN`

It responds 200 after handling a notification, and 500 if that failed; Alertmanager then sends it again.
"""

from __future__ import annotations

import hmac
import json
import logging
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from observatory.nodes.programs.alert_receiver import TlsServer, body_length
from observatory.runtime import Sandbox, find_drift
from observatory.runtime.drift import CHANGED, Drift

BODY_BYTES = 1_000_000  # the same limit as the alert receiver's
REQUEST_SECONDS = 10  # without data from a client, after which its connection is closed
TOKEN_BYTES = 32
GENERATED = re.compile(r"[A-Za-z0-9_-]{43}")  # what `token_urlsafe` makes of so many bytes
LOG = logging.getLogger("observatory.scheduler")

TakeAlerts = Callable[[Mapping[str, Any]], str]


def token(sandbox: Sandbox, file: str) -> str:
    """Return the secret in a private file below /srv, generated where there is none; the daemons' user may read it."""
    if token_drift(sandbox, file):
        sandbox.write_file(file, secrets.token_urlsafe(TOKEN_BYTES))
    return _read(sandbox, file)


def token_drift(sandbox: Sandbox, file: str) -> tuple[Drift, ...]:
    """Return what is wrong with the file of the secret: also a content that was never generated here."""
    if found := find_drift(sandbox, {file: None}):
        return found
    return () if GENERATED.fullmatch(_read(sandbox, file)) else (Drift(path=file, problem=CHANGED),)


def _read(sandbox: Sandbox, file: str) -> str:
    return sandbox.host_path(file).read_text(encoding="utf-8", errors="replace")


def serve(port: int, secret: Callable[[], str], take: TakeAlerts, *, certificate: Path, authority: Path) -> TlsServer:
    """Serve on a port of loopback, in threads that end with the process; return the server.

    Args:
        port: to listen on.
        secret: returns the token that a request must carry. Alertmanager reads its file for each request, too.
        take: handles a notification, and returns what it did as text.
        certificate: PEM file of the server's certificate and its key, read for each connection.
        authority: PEM file of the authority of clients.

    Raises:
        OSError: the port is in use.
    """
    handler = type("BoundHandler", (_Handler,), {"secret": staticmethod(secret), "take": staticmethod(take)})
    server = TlsServer(port, handler, certificate=certificate, authority=authority)
    threading.Thread(target=server.serve_forever, name="rollback-webhook", daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    """The endpoint that the module's docstring describes."""

    secret: Callable[[], str]
    take: TakeAlerts
    timeout = REQUEST_SECONDS

    def do_POST(self) -> None:
        """Check the token and the request, and handle the notification."""
        given = self.headers.get("Authorization", "")
        length = body_length(self.headers)
        if not hmac.compare_digest(given.encode(), f"Bearer {self.secret()}".encode()):
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
        except (ValueError, RecursionError):
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
