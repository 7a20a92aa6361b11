"""Connections: uvicorn's HTTP protocol, with limits of time and size for the headers of a request.

The body of a request has its own limits, in `bodies`.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_TIMEOUT_S = 20.0
"""From the connection, or from the first byte of a further request, to the end of the headers."""
MAX_HEADER_BYTES = 64 * 1024


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose headers are incomplete for too long, or too large."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._header_bytes = 0
        self._header_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the headers of the first request."""
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._end_of_headers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, unless the headers become too large."""
        if self._header_deadline:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._header_deadline and self._header_bytes > MAX_HEADER_BYTES:
            self.transport.close()

    def on_message_begin(self) -> None:
        """Expect the headers of a request."""
        super().on_message_begin()
        if not self._header_deadline:
            self._expect_headers()

    def on_headers_complete(self) -> None:
        """Start the request."""
        self._end_of_headers()
        super().on_headers_complete()

    def _expect_headers(self) -> None:
        self._header_bytes = 0
        self._header_deadline = self.loop.call_later(HEADERS_TIMEOUT_S, self.transport.close)

    def _end_of_headers(self) -> None:
        if self._header_deadline:
            self._header_deadline.cancel()
            self._header_deadline = None
