"""What a supervisor is told that wants to know: that the service listens, that its event loop turns, that it stops.

The protocol is systemd's, sd_notify(3): datagrams to the socket that NOTIFY_SOCKET names, a sign of life twice in each
WATCHDOG_USEC. Where there is no such socket, nobody is told. The supervisor's own absence is no reason to fail.
"""

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass, field

SIGNS_PER_PERIOD = 2  # as sd_watchdog_enabled(3) recommends


@dataclass(kw_only=True)
class Supervisor:
    """Who is told; `period_s` is how long it takes silence for, or None where it takes none for death."""

    address: str | None
    period_s: float | None
    _signs: asyncio.Task[None] | None = field(default=None, init=False)

    @classmethod
    def from_environment(cls) -> "Supervisor":
        """Return who systemd says it is, if this process is the one that it watches."""
        address = os.environ.get("NOTIFY_SOCKET")
        period = os.environ.get("WATCHDOG_USEC")
        ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(address=address, period_s=int(period) / 1_000_000 if period and ours else None)

    def started(self) -> None:
        """Say that the service listens, and from now on that it lives."""
        self._tell("READY=1")
        if self.period_s:
            self._signs = asyncio.create_task(self._live(self.period_s / SIGNS_PER_PERIOD))

    def stopping(self) -> None:
        """Say that the service was asked to stop."""
        self._tell("STOPPING=1")

    async def _live(self, pause_s: float) -> None:
        while True:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(pause_s)

    def _tell(self, state: str) -> None:
        if not self.address:
            return
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address  # an abstract socket's name
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.setblocking(False)
            told.sendto(state.encode(), name)
