"""Notifications to systemd, and their absence."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.service.harness import COMMAND, StorageDatabase, running_service
from tests.support.waiting import PATIENCE_S

PERIOD_S = 2.0


@pytest.fixture(params=["a path", "an abstract name"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """Return the socket that systemd listens on, and its name in NOTIFY_SOCKET."""
    name = f"{tmp_path}/notify" if request.param == "a path" else f"@observatory-test-{os.getpid()}"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listening:
        listening.bind(name.replace("@", "\0"))
        listening.settimeout(PATIENCE_S)
        yield listening, name


def test_service_notifies_ready_keep_alive_and_shutdown(
    database: StorageDatabase, systemd: tuple[socket.socket, str], tmp_path: Path
) -> None:
    listening, name = systemd

    def received() -> str:
        return listening.recv(64).decode()

    def make_room() -> None:
        """Read all that waits: the kernel refuses a message to a socket with ten of them, and the service goes on."""
        listening.setblocking(False)
        with suppress(BlockingIOError):
            while received():
                pass
        listening.settimeout(PATIENCE_S)

    command = ("env", f"NOTIFY_SOCKET={name}", f"WATCHDOG_USEC={int(PERIOD_S * 1_000_000)}", *COMMAND)
    with running_service(database, tmp_path, {}, command=command) as service:
        assert received() == "READY=1"
        assert service.client().get("/health/live").status_code == 200
        assert [received() for _ in range(3)] == ["WATCHDOG=1"] * 3
        make_room()
        service.terminate()
        while (message := received()) == "WATCHDOG=1":
            pass
        assert message == "STOPPING=1"
        assert service.process.wait(PATIENCE_S) == 0


def test_service_works_with_a_foreign_watchdog_and_a_missing_socket(database: StorageDatabase, tmp_path: Path) -> None:
    command = ("env", f"NOTIFY_SOCKET={tmp_path}/gone", "WATCHDOG_USEC=1000", "WATCHDOG_PID=1", *COMMAND)
    with running_service(database, tmp_path, {}, command=command) as service:
        service.wait_until_ready()
        service.terminate()
        assert service.process.wait(PATIENCE_S) == 0
