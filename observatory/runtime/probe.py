"""Probes of a daemon's readiness, over HTTP or TCP."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from observatory.security.client_certificate import ClientCertificate

ATTEMPT_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Ready when `http` (a URL) responds 200, or when `tcp` (host, port) accepts a connection.

    An `https` URL needs `client`, which is shown to the server and verifies it.
    """

    http: str | None = None
    tcp: tuple[str, int] | None = None
    client: ClientCertificate | None = None

    def __post_init__(self) -> None:
        if (self.http is None) == (self.tcp is None):
            raise ValueError("a probe needs either http or tcp")

    def __call__(self) -> str | None:
        """Probe once; return None if the daemon is ready, otherwise the reason."""
        try:
            status = self._attempt()
        except (OSError, HTTPException) as error:
            return f"{self}: {error}"
        return None if status == HTTPStatus.OK else f"{self} answered {status}"

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

    def _attempt(self) -> int:
        if self.http:
            return self._ask(self.http)
        socket.create_connection(self.tcp or ("", 0), timeout=ATTEMPT_SECONDS).close()
        return HTTPStatus.OK

    def _ask(self, url: str) -> int:
        parts = urlsplit(url)
        connection = self._connection(parts.hostname or "", parts.port or 80)
        try:
            connection.request("GET", parts._replace(scheme="", netloc="").geturl() or "/")
            return connection.getresponse().status
        finally:
            connection.close()

    def _connection(self, host: str, port: int) -> HTTPConnection:
        if self.client is None:
            return HTTPConnection(host, port, timeout=ATTEMPT_SECONDS)
        return HTTPSConnection(host, port, timeout=ATTEMPT_SECONDS, context=self.client.context())

    def __str__(self) -> str:
        return self.http or ":".join(map(str, self.tcp or ()))
