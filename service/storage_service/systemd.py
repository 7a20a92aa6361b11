"""Notifications to systemd: the service is ready, alive or shutting down.

The protocol is sd_notify(3): datagrams to the socket NOTIFY_SOCKET, and a keep-alive twice per WATCHDOG_USEC. Without
NOTIFY_SOCKET nothing is sent. An error while sending is ignored: the service works without systemd.
"""

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass, field

KEEP_ALIVES_PER_PERIOD = 2  # as sd_watchdog_enabled(3) recommends


@dataclass(kw_only=True)
class SystemdNotifier:
    """The connection to systemd.

    Attributes:
        address: socket of systemd; None if the service does not run under it.
        watchdog_s: time without a keep-alive after which systemd restarts the service; None without a watchdog.
    """

    address: str | None
    watchdog_s: float | None
    _keep_alive: asyncio.Task[None] | None = field(default=None, init=False)

    @classmethod
    def from_environment(cls) -> "SystemdNotifier":
        """Read NOTIFY_SOCKET, and WATCHDOG_USEC if the watchdog is for this process."""
        address = os.environ.get("NOTIFY_SOCKET")
        period = os.environ.get("WATCHDOG_USEC")
        ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(address=address, watchdog_s=int(period) / 1_000_000 if period and ours else None)

    def started(self) -> None:
        """Notify that the service listens, and start the keep-alives."""
        self._send("READY=1")
        if self.watchdog_s:
            self._keep_alive = asyncio.create_task(self._send_keep_alives(self.watchdog_s / KEEP_ALIVES_PER_PERIOD))

    def stopping(self) -> None:
        """Notify that the service shuts down."""
        self._send("STOPPING=1")

    async def _send_keep_alives(self, interval_s: float) -> None:
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(interval_s)

    def _send(self, state: str) -> None:
        if not self.address:
            return
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address  # an abstract socket
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
            notifications.setblocking(False)
            notifications.sendto(state.encode(), name)
