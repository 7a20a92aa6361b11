"""Probes of a daemon's readiness, over HTTP or TCP."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from observatory.security.client_certificate import ClientCertificate

ATTEMPT_SECONDS = 2.0
READ_BYTES = 65536  # of a response


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Ready when `http` (a URL) responds 200, or when `tcp` (host, port) accepts a connection.

    An `https` URL needs `client`, which is shown to the server and verifies it. With `says`, the response is a JSON
    document with these fields.
    """

    http: str | None = None
    tcp: tuple[str, int] | None = None
    client: ClientCertificate | None = None
    says: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if (self.http is None) == (self.tcp is None):
            raise ValueError("a probe needs either http or tcp")

    def __call__(self) -> str | None:
        """Probe once; return None if the daemon is ready, otherwise the reason."""
        try:
            status, body = self._attempt()
        except (OSError, HTTPException) as error:
            return f"{self}: {error}"
        if status != HTTPStatus.OK:
            return f"{self} answered {status}"
        return self._unsaid(body)

    def silence(self) -> str | None:
        """Probe once; return why the daemon gives no answer at all, None if it gives any."""
        try:
            self._attempt()
        except (OSError, HTTPException) as error:
            return f"{self}: {error}"
        return None

    def hangs(self) -> bool:
        """Return whether the daemon accepts a connection and gives no answer, as a stopped process does."""
        try:
            self._attempt()
        except TimeoutError:
            return True
        except (OSError, HTTPException):
            return False
        return False

    def check(self) -> bool:
        """Probe once; return whether the daemon is ready."""
        return self() is None

    def read(self, path: str) -> str | None:
        """Return the text of another path of an HTTP listener, None if it does not answer with one."""
        url = urlsplit(self.http or "")._replace(path=path, query="").geturl()
        try:
            status, body = self._ask(url, most=None)
        except (OSError, HTTPException):
            return None
        return body.decode() if status == HTTPStatus.OK else None

    def _unsaid(self, body: bytes) -> str | None:
        """Return which field of `says` a response lacks, None if it has them all."""
        if not self.says:
            return None
        try:
            found = json.loads(body)
        except ValueError:
            return f"{self} answered no JSON document"
        lacking = (f"{name} is {found.get(name)}" for name, value in self.says.items() if found.get(name) != value)
        return next((f"{self}: {each}" for each in lacking), None)

    def _attempt(self) -> tuple[int, bytes]:
        if self.http:
            return self._ask(self.http, most=READ_BYTES if self.says else 0)
        socket.create_connection(self.tcp or ("", 0), timeout=ATTEMPT_SECONDS).close()
        return HTTPStatus.OK, b""

    def _ask(self, url: str, *, most: int | None) -> tuple[int, bytes]:
        parts = urlsplit(url)
        connection = self._connection(parts.hostname or "", parts.port or 80)
        try:
            connection.request("GET", parts._replace(scheme="", netloc="").geturl() or "/")
            response = connection.getresponse()
            return response.status, response.read(most)
        finally:
            connection.close()

    def _connection(self, host: str, port: int) -> HTTPConnection:
        if self.client is None:
            return HTTPConnection(host, port, timeout=ATTEMPT_SECONDS)
        return HTTPSConnection(host, port, timeout=ATTEMPT_SECONDS, context=self.client.context())

    def __str__(self) -> str:
        return self.http or ":".join(map(str, self.tcp or ()))
