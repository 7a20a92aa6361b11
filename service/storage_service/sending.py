"""Responses: built and sent within limits of time and memory, also when clients do not read them.

A key holds memory of the instance from the first byte of a page until the client has read it. So every key has a share,
and a client has to read at a minimum rate. Responses are written in pieces, each when the one before it has left this
process.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .accounts import MemoryAccount
from .fairness import RemainderShare
from .metrics import Metrics
from .problems import RETRY_AFTER_S, TooManyRequests
from .settings import Settings

PIECE_BYTES = 64 * 1024


class ResponseNotReadError(Exception):
    """The client reads its response too slowly, so the connection was closed."""


class Download(MemoryAccount):
    """The response to one request, from its first byte in memory until it is sent."""

    full = (
        "responses take {held} of {capacity} bytes, and those of this API key at least its share; read the responses, "
        "and send fewer requests at the same time"
    )


class Downloads:
    """The responses in progress to requests with a key."""

    def __init__(self, settings: Settings, *, metrics: Metrics) -> None:
        self._number = RemainderShare(settings.max_responses)
        self._memory = RemainderShare(settings.max_response_bytes)
        metrics.responses.set_function(lambda: self._number.held)
        metrics.response_bytes.set_function(lambda: self._memory.held)

    def begin(self, request: Request, key: str) -> Download:
        """Admit the response to a request of a key; it is in progress until it is sent.

        Raises:
            TooManyRequests: the key has as many responses in progress as it may have.
        """
        download: Download = request.state.until_sent.enter_context(self._download(key))
        return download

    @contextlib.contextmanager
    def _download(self, key: str) -> Iterator[Download]:
        if not self._number.fits(key):
            raise TooManyRequests(
                f"{self._number.held} responses are in progress, and this API key has at least its share of them; read "
                "the responses, and send fewer requests at the same time",
                RETRY_AFTER_S,
            )
        download = Download(key, self._memory)
        with self._number.holding(key):
            try:
                yield download
            finally:
                download.release()


class Sending:
    """Sends responses in pieces, and closes the connection of a client that does not read its response."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope.

        Raises:
            ResponseNotReadError: the client did not read the response in time.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with contextlib.ExitStack() as until_sent:
            scope["state"]["until_sent"] = until_sent
            await self._app(scope, receive, _Paced(send, self._settings, abort=scope["state"]["abort"]))


class _Paced:
    """Sends the messages of one response, each in its time."""

    def __init__(self, send: Send, settings: Settings, *, abort: Callable[[], None]) -> None:
        self._send = send
        self._settings = settings
        self._abort = abort
        self._started: float | None = None
        self._sent = 0

    async def __call__(self, message: Message) -> None:
        """Send a message; a long body is sent in pieces."""
        body = message.get("body", b"")
        if len(body) <= PIECE_BYTES:
            await self._in_time(message)
            return
        for start in range(0, len(body), PIECE_BYTES):
            end = start + PIECE_BYTES
            more = message.get("more_body", False) or end < len(body)
            await self._in_time({**message, "body": body[start:end], "more_body": more})

    async def _in_time(self, message: Message) -> None:
        # `send` waits until the piece before has left this process.
        now = asyncio.get_running_loop().time()
        if self._started is None:
            self._started = now
        allowed = self._settings.response_seconds + self._sent / self._settings.response_bytes_per_second
        try:
            async with asyncio.timeout_at(self._started + allowed):
                await self._send(message)
        except TimeoutError:
            self._abort()
            await self._send(message)  # returns when the connection is closed
            raise ResponseNotReadError from None
        self._sent += len(message.get("body", b""))
