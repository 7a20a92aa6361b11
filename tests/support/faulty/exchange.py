"""One request to a faulty service: read it, change it, pass it on, change the response or replace it."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, ClassVar

Message = MutableMapping[str, Any]
App = Callable[[Any, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]
LATE_S = 15.0
"""A late fault begins so long after the start of an instance with traffic, and never in the pre-deployment tests,
which take longer than this on a busy machine."""
STARTED = time.monotonic()
IN_TRIAL = Path(__file__).parents[3].name == "trial"
"""Whether the release was unpacked for its pre-deployment tests (`observatory.nodes.storage.trial_directory`)."""


class Exchange:
    """A request, and its outcome.

    Attributes:
        path: of the request.
        read: whether it is a GET of the API.
        write: whether it is a POST of the API.
    """

    def __init__(self, app: App, scope: Any, receive: Any, send: Any) -> None:
        self._app, self.scope, self._receive, self.send = app, scope, receive, send
        self.path: str = scope["path"]
        api = self.path.startswith("/v1/")
        self.read, self.write = api and scope["method"] == "GET", api and scope["method"] == "POST"

    @property
    def trace_id(self) -> str:
        """The trace that is read; empty for other requests."""
        return self.path.removeprefix("/v1/traces/") if self.read and self.path.startswith("/v1/traces/") else ""

    def header(self, name: bytes) -> bytes:
        return next((value for key, value in self.scope["headers"] if key == name), b"")

    async def pass_on(self) -> None:
        """Handle the request as the good version does."""
        await self._app(self.scope, self._receive, self.send)

    async def items(self) -> list[dict[str, Any]]:
        """Return the items of a write; the application gets its body all the same."""
        body = b""
        while True:
            message = await self._receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self._replay(body)
        try:
            return list(json.loads(body)["items"])
        except (ValueError, KeyError, TypeError):
            return []

    def replace_items(self, items: list[dict[str, Any]]) -> None:
        """Let the application store other items than were sent."""
        body = json.dumps({"items": items}).encode()
        others = [pair for pair in self.scope["headers"] if pair[0] != b"content-length"]
        self.scope["headers"] = [*others, (b"content-length", str(len(body)).encode())]
        self._replay(body)

    def _replay(self, body: bytes) -> None:
        rest = iter([{"type": "http.request", "body": body, "more_body": False}])
        after = self._receive

        async def again() -> Message:
            return next(rest, None) or await after()

        self._receive = again

    async def response(self) -> tuple[int, bytes]:
        """Let the application respond, and return status and body instead of sending them."""
        status, body = 500, b""

        async def collect(message: Message) -> None:
            nonlocal status, body
            if message["type"] == "http.response.start":
                status = message["status"]
            body += message.get("body", b"")

        await self._app(self.scope, self._receive, collect)
        return status, body

    async def answer(self, status: int, document: object, *, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """Respond with JSON, or with bytes as they are."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        fields = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *headers,
        ]
        await self.send({"type": "http.response.start", "status": status, "headers": fields})
        await self.send({"type": "http.response.body", "body": body})


class Fault:
    """A good version, around which each kind of fault is a subclass.

    Attributes:
        late: the fault begins `LATE_S` seconds after the start, and spares the pre-deployment tests.
    """

    late: ClassVar[bool] = False

    def __init__(self, app: App) -> None:
        self._app = app
        self.number = 0  # of requests of the API since the fault began

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or (self.late and (IN_TRIAL or time.monotonic() < STARTED + LATE_S)):
            await self._app(scope, receive, send)
            return
        self.number += scope["path"].startswith("/v1/")
        await self.handle(Exchange(self._app, scope, receive, send))

    async def handle(self, exchange: Exchange) -> None:
        await exchange.pass_on()

    @classmethod
    def start(cls) -> None:
        """Do what the fault does to the process, before the service is imported."""
