"""What the service tells systemd, and that it needs nobody who listens."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.service.harness import COMMAND, PATIENCE_S, StorageDatabase, running_service

PERIOD_S = 0.2


@pytest.fixture(params=["a path", "an abstract name"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The socket that systemd listens on, and its name in NOTIFY_SOCKET."""
    name = f"{tmp_path}/notify" if request.param == "a path" else f"@observatory-test-{os.getpid()}"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listening:
        listening.bind(name.replace("@", "\0"))
        listening.settimeout(PATIENCE_S)
        yield listening, name


def test_the_service_says_that_it_listens_that_it_lives_and_that_it_stops(
    database: StorageDatabase, systemd: tuple[socket.socket, str], tmp_path: Path
) -> None:
    listening, name = systemd

    def told() -> str:
        return listening.recv(64).decode()

    command = ("env", f"NOTIFY_SOCKET={name}", f"WATCHDOG_USEC={int(PERIOD_S * 1_000_000)}", *COMMAND)
    with running_service(database, tmp_path, {}, command=command) as service:
        assert told() == "READY=1"
        assert service.client().get("/health/live").status_code == 200
        assert [told() for _ in range(3)] == ["WATCHDOG=1"] * 3
        service.terminate()
        while (said := told()) == "WATCHDOG=1":
            pass
        assert said == "STOPPING=1"
        assert service.process.wait(PATIENCE_S) == 0


def test_a_watchdog_of_another_process_and_a_socket_that_is_gone_are_no_reason_to_fail(
    database: StorageDatabase, tmp_path: Path
) -> None:
    command = ("env", f"NOTIFY_SOCKET={tmp_path}/gone", "WATCHDOG_USEC=1000", "WATCHDOG_PID=1", *COMMAND)
    with running_service(database, tmp_path, {}, command=command) as service:
        service.wait_until_ready()
        service.terminate()
        assert service.process.wait(PATIENCE_S) == 0
