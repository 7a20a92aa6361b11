"""Connections: uvicorn's HTTP protocol, with limits on what a client may send besides the bodies of its requests.

The body of a request has its own limits, in `bodies`.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_TIMEOUT_S = 20.0
"""From the connection, or from the first byte of a further request, to the end of the headers."""
MAX_HEADER_BYTES = 64 * 1024
_PUNCTUATION = len(": \r\n")
MAX_PIPELINED = 16
"""Requests that wait for the response to an earlier one. They take memory and parsing before any key is checked."""


class RejectedConnectionError(Exception):
    """What a client sent exceeds a limit; the parser stops, and the connection is closed."""


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose headers are incomplete for too long, or that sends too much besides bodies."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._header_deadline: asyncio.TimerHandle | None = None
        self._header_bytes = 0  # names and values of one request
        self._other_bytes = 0  # since the last part of a body: headers, trailers, extensions of chunks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the headers of the first request."""
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._end_of_headers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, unless it becomes too much without a body."""
        self._other_bytes += len(data)
        super().data_received(data)
        if self._other_bytes > MAX_HEADER_BYTES:
            self.transport.close()

    def on_message_begin(self) -> None:
        """Expect the headers of a request."""
        if len(self.pipeline) >= MAX_PIPELINED:
            self._reject(f"more than {MAX_PIPELINED} requests wait for their responses")
        super().on_message_begin()
        self._header_bytes = 0
        if not self._header_deadline:
            self._expect_headers()

    def on_url(self, url: bytes) -> None:
        """Count the bytes of the request's target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header to the request. Trailers, which follow its body, are counted but not used."""
        self._count(len(name) + len(value) + _PUNCTUATION)
        if self._header_deadline:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request."""
        self._end_of_headers()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on."""
        self._other_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect a further request."""
        self._other_bytes = 0
        super().on_message_complete()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            self._reject(f"the headers have more than {MAX_HEADER_BYTES} bytes")

    def _reject(self, reason: str) -> None:
        self.transport.close()  # first, so that the parser's error is not sent in place of another response
        raise RejectedConnectionError(reason)

    def _expect_headers(self) -> None:
        self._header_deadline = self.loop.call_later(HEADERS_TIMEOUT_S, self.transport.close)

    def _end_of_headers(self) -> None:
        self._other_bytes = 0
        if self._header_deadline:
            self._header_deadline.cancel()
            self._header_deadline = None
