"""The list of listeners: one that no setting names is found, whatever its kind."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from proofs.neighbours import problem


def listening(kind: socket.SocketKind, address: str, named: bool) -> list[str]:
    """Return the problems of a new socket of this process, whose port is in the settings or not."""
    with socket.socket(socket.AF_INET, kind) as made:
        made.bind((address, 0))
        if kind is socket.SOCK_STREAM:
            made.listen()
        port = made.getsockname()[1]
        inet: list[Any] = psutil.Process().net_connections("inet")
        mine = [each for each in inet if (each.type, each.laddr.port) == (kind, port)]  # TCP and UDP may have the same
        return [found for each in mine if (found := problem(each, {port} if named else set()))]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_port_that_no_setting_names_is_found(kind: socket.SocketKind) -> None:
    (found,) = listening(kind, "127.0.0.1", named=False)
    assert "is in no setting" in found
    assert listening(kind, "127.0.0.1", named=True) == []


def test_a_port_that_other_machines_reach_is_found() -> None:
    (found,) = listening(socket.SOCK_STREAM, "0.0.0.0", named=True)  # noqa: S104 - what is tested
    assert "listens at 0.0.0.0" in found


@pytest.fixture
def unix_socket(tmp_path: Path) -> Iterator[str]:
    with ExitStack() as closing:
        made = closing.enter_context(socket.socket(socket.AF_UNIX))
        made.bind(str(tmp_path / "x.sock"))
        made.listen()
        yield str(tmp_path / "x.sock")


def test_a_unix_socket_that_is_not_listed_is_found(unix_socket: str) -> None:
    mine: list[Any] = psutil.Process().net_connections("unix")
    found = [problem(each, set()) for each in mine if each.laddr == unix_socket]
    assert found == [f"the unix socket {unix_socket} is not in the list"]
