"""TCP ports on loopback: whose they are, before a daemon fails to bind."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from observatory.machine.errors import PortInUse

LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp, include/net/tcp_states.h


def check_ports(ports: Mapping[str, int]) -> None:
    """Check that every port (by the setting that chose it) can be bound on loopback.

    Raises:
        PortInUse: names all that cannot, with the process that holds each.
    """
    taken = [f"{setting}: port {port} is in use by {_holder(port)}" for setting, port in ports.items() if _bound(port)]
    if taken:
        raise PortInUse("\n".join([*taken, "End that process, or choose another port in the stack's configuration."]))


def find_free_ports(count: int) -> list[int]:
    """Return `count` different ports that were free a moment ago."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _bound(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise
        return False


def _holder(port: int) -> str:
    for inode in _listening_inodes(port):
        for process in _processes_with(f"socket:[{inode}]"):
            return _describe(process)
    return "a process of another user"


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _processes_with(link: str) -> Iterator[Path]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(descriptor) == link for descriptor in (process / "fd").iterdir()):  # noqa: PTH115
                yield process


def _describe(process: Path) -> str:
    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    uid = process.stat().st_uid
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return f"process {process.name} of user {user} ({command[:100]})"
