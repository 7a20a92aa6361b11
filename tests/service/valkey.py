"""A real Valkey for the service's tests."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis

from tests.support.ports import free_port
from tests.support.sandboxes import sandboxed
from tests.support.waiting import until

PASSWORD = "not the one of any other server"


@dataclass(kw_only=True)
class Valkey:
    """A server with a password. It can be killed, stopped by a signal, and started again on the same port."""

    rootfs: Path
    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> dict[str, str]:
        """The service's settings, with a generous time limit for a busy machine."""
        return {
            "CACHE_URL": f"redis://127.0.0.1:{self.port}/0",
            "CACHE_PASSWORD_FILE": str(self.directory / "password"),
            "CACHE_TIMEOUT_SECONDS": "10",  # the longest; a request that got no answer in time is no hit
        }

    def start(self) -> None:
        """Start the server and wait until it responds."""
        command = sandboxed(self.rootfs, self.directory, ["/usr/bin/valkey-server", "/srv/valkey.conf"])
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until(self._answers, "Valkey to answer")

    def kill(self) -> None:
        """Kill the server if it runs."""
        if self.process:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server itself, a child of its sandbox."""
        assert self.process
        psutil.Process(self.process.pid).children(recursive=True)[-1].send_signal(number)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=PASSWORD)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port)) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(100).startswith(b"-NOAUTH")
        except OSError:
            return False


@contextmanager
def valkey_server(rootfs: Path, directory: Path) -> Iterator[Valkey]:
    """Start a new, empty server, and kill it at the end."""
    port = free_port()
    (directory / "password").write_text(PASSWORD + "\n", encoding="utf-8")
    (directory / "valkey.conf").write_text(
        f'port {port}\nbind 127.0.0.1\nrequirepass "{PASSWORD}"\nsave ""\ndir /tmp\n', encoding="utf-8"
    )
    server = Valkey(rootfs=rootfs, directory=directory, port=port)
    try:
        server.start()
        yield server
    finally:
        server.kill()
