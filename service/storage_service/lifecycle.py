"""The phases of a process, and its shutdown without failed requests.

After SIGTERM the process is not ready, but accepts requests during the lame-duck period, because balancers need time to
notice. Then it rejects new requests, finishes those in flight, and exits with status 0.
"""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from enum import Enum

import uvicorn

from .settings import Settings
from .systemd import SystemdNotifier

log = logging.getLogger(__name__)


class Phase(Enum):
    """Phase of a process: accepting requests, not ready but accepting requests, or rejecting new requests."""

    SERVING = "serving"
    LAME_DUCK = "lame duck"
    DRAINING = "draining"


class Lifecycle:
    """The current phase, and the requests in flight."""

    def __init__(self) -> None:
        self.phase = Phase.SERVING
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as in flight."""
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains before it exits."""

    def __init__(self, config: uvicorn.Config, *, lifecycle: Lifecycle, settings: Settings) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._settings = settings
        self._drain: asyncio.Task[None] | None = None
        self._notifier = SystemdNotifier.from_environment()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and notify systemd."""
        await super().startup(sockets)
        self._notifier.started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain after SIGTERM or SIGINT; further signals during the drain have no effect."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        yield

    def _on_signal(self) -> None:
        if self._drain is None:
            self._notifier.stopping()
            self._drain = asyncio.create_task(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        log.info("shutting down: not ready from now on")
        self._lifecycle.phase = Phase.LAME_DUCK
        await asyncio.sleep(self._settings.lame_duck_seconds)
        self._lifecycle.phase = Phase.DRAINING
        try:
            async with asyncio.timeout(self._settings.drain_seconds):
                await self._lifecycle.idle()
        except TimeoutError:
            log.warning("closing the requests that are still in flight after STORAGE_DRAIN_SECONDS")
        self.should_exit = True
