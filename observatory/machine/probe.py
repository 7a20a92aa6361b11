"""Readiness of a daemon, looked at from outside."""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

TIMEOUT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Ready when `http` answers 200, or when `tcp` (host, port) accepts a connection."""

    http: str | None = None
    tcp: tuple[str, int] | None = None

    def check(self) -> bool:
        """Look once; False for every way of not being ready."""
        try:
            return self._http_answers(self.http) if self.http else self._tcp_accepts()
        except (OSError, http.client.HTTPException):
            return False

    def _http_answers(self, url: str) -> bool:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=TIMEOUT_S)
        try:
            connection.request("GET", parts.path)
            return connection.getresponse().status == http.client.OK
        finally:
            connection.close()

    def _tcp_accepts(self) -> bool:
        if self.tcp is None:
            return True
        with socket.create_connection(self.tcp, timeout=TIMEOUT_S):
            return True

    def __str__(self) -> str:
        return self.http or (f"{self.tcp[0]}:{self.tcp[1]}" if self.tcp else "running")
