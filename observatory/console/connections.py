"""Connections to the console: uvicorn's HTTP protocol, with limits that keep a place free for a browser.

Every user of the machine can connect. A connection that sends no complete request is closed after a time, one that does
not read its answer too, and both earlier where their place is needed.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 64  # more take the places of those that have waited longest for their client
REQUEST_SECONDS = 10.0  # from the connection, or from the last answer, to the end of a request's headers
UNREAD_SECONDS = 60.0  # for an answer to leave this process


class BoundedProtocol(H11Protocol):
    """Ends a connection that waits too long for its client, or whose place is needed."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.since = self.loop.time()  # of the connection, or of its last answer
        self._deadline: asyncio.TimerHandle | None = None
        self.ended = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place, and expect a request."""
        super().connection_made(transport)
        self._end_others()
        self._wait(REQUEST_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._wait(None)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Answer a complete request; a part of one does not extend its time."""
        super().handle_events()
        if self._is_answering and not self.flow.write_paused:
            self._wait(None)

    def on_response_complete(self) -> None:
        """Expect that the answer is read, and a further request."""
        self.since = self.loop.time()
        self._wait(UNREAD_SECONDS if self.transport.get_write_buffer_size() else REQUEST_SECONDS)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Expect that what was written is read."""
        super().pause_writing()
        self._wait(UNREAD_SECONDS)

    def resume_writing(self) -> None:
        """Continue, since the client reads; after the last part of an answer, expect a request."""
        super().resume_writing()
        self._wait(None if self._is_answering else REQUEST_SECONDS)

    @property
    def _is_answering(self) -> bool:
        # uvicorn has None before the first request, which its type lacks.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    @property
    def waits_for_client(self) -> bool:
        """Whether the console waits for a request, or for an answer to be read."""
        return not self.ended and (not self._is_answering or self.flow.write_paused)

    def _wait(self, seconds: float | None) -> None:
        """Close the connection after a time, None for never, unless this is called again."""
        if self._deadline:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._close)

    def _close(self) -> None:
        """Close the connection when its client has read the rest of the answer, at the latest after a time."""
        if self.flow.write_paused or self.transport.is_closing():
            self.end()
        else:
            self.transport.close()
            self._wait(UNREAD_SECONDS)

    def end(self) -> None:
        """End the connection now, whatever was not read."""
        self.ended = True
        self.transport.abort()

    def _end_others(self) -> None:
        """End connections that have waited longest for their clients, as many as there are too many."""
        here = [each for each in self.connections if isinstance(each, BoundedProtocol) and not each.ended]
        waiting = [each for each in here if each is not self and each.waits_for_client]
        waiting.sort(key=lambda each: each.since)
        for each in waiting[: max(0, len(here) - CONNECTIONS)]:
            each.end()
