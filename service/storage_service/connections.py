"""Connections: uvicorn's HTTP protocol, with limits on what a client may send besides the bodies of its requests.

The body of a request has its own limits, in `bodies`.
"""

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_TIMEOUT_S = 20.0
"""From the connection, or from the first byte of a further request, to the end of the headers."""
MAX_HEADER_BYTES = 64 * 1024
_PUNCTUATION = len(": \r\n")
_FRAMING = (b"content-length", b"transfer-encoding")
UNREAD_TIMEOUT_S = 60.0
"""For what was written to a connection to leave this process. `sending` has shorter limits for long responses."""
WRITE_BUFFER_BYTES = 16 * 1024
"""What a connection may hold without this time limit."""
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
        self._unread_deadline: asyncio.TimerHandle | None = None
        self._continuing = False  # with another parser, which is given the headers of the request again
        self.parser = _Parser(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the headers of the first request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES, low=0)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._end_of_headers()
        self._all_is_written()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Expect that what was written leaves this process."""
        super().pause_writing()
        self._unread_deadline = self.loop.call_later(UNREAD_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Everything that was written has left this process."""
        self._all_is_written()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, unless it becomes too much without a body."""
        self._other_bytes += len(data)
        super().data_received(data)
        if self._other_bytes > MAX_HEADER_BYTES:
            self.transport.close()

    def on_message_begin(self) -> None:
        """Expect the headers of a request."""
        if self._continuing:
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            self._reject(f"more than {MAX_PIPELINED} requests wait for their responses")
        super().on_message_begin()
        self._header_bytes = 0
        if not self._header_deadline:
            self._expect_headers()

    def on_url(self, url: bytes) -> None:
        """Count the bytes of the request's target."""
        if self._continuing:
            return
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header to the request. Trailers, which follow its body, are counted but not used."""
        if self._continuing:
            return
        self._count(len(name) + len(value) + _PUNCTUATION)
        if self._header_deadline:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request."""
        if self._continuing:
            self._continuing = False
            return
        self._end_of_headers()
        self.scope["state"]["abort"] = self.transport.abort
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on."""
        self._other_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect a further request."""
        if self.parser.should_upgrade():
            return  # only the headers are complete
        self._other_bytes = 0
        super().on_message_complete()

    def continue_with(self, parser: httptools.HttpRequestParser, data: bytes) -> None:
        """Continue with the body of a request, of which another parser has parsed the headers."""
        self.parser = parser
        self._continuing = True
        framing = (b"%b: %b\r\n" % header for header in self.headers if header[0] in _FRAMING)
        version = self.scope["http_version"].encode()
        parser.feed_data(b"POST / HTTP/%b\r\n%b\r\n" % (version, b"".join(framing)))
        if data:
            parser.feed_data(data)

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

    def _all_is_written(self) -> None:
        if self._unread_deadline:
            self._unread_deadline.cancel()
            self._unread_deadline = None


class _Parser(httptools.HttpRequestParser):
    """Parses a request to upgrade the protocol (`Upgrade: h2c`) like any other request.

    The service offers no other protocol, so it ignores the header, as RFC 9110 (section 7.8) allows. httptools stops
    after the headers of such a request, as if the protocol had changed. Then a new parser continues with the body.
    """

    def __init__(self, protocol: BoundedProtocol) -> None:
        super().__init__(protocol)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own parser
        self._protocol = protocol

    def feed_data(self, data: Any) -> None:
        """Parse what arrived."""
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            self._protocol.continue_with(_Parser(self._protocol), data[stopped.args[0] :])
