"""TCP ports: who holds one, and which are free."""

from __future__ import annotations

import contextlib
import pwd
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from observatory.runtime.errors import PortInUse

LISTEN = "0A"  # TCP_LISTEN of include/net/tcp_states.h, as /proc/net/tcp writes it


@dataclass(frozen=True, kw_only=True)
class Listener:
    """A listening socket; `pid` and `command` are None if its process is another user's that we may not look into."""

    port: int
    user: str
    pid: int | None
    command: str | None

    def __str__(self) -> str:
        process = f"process {self.pid} ({self.command})" if self.pid else "a process"
        return f"{process} of user {self.user}"


def check_ports(ports: Mapping[str, int], *, ours: Collection[int] = ()) -> None:
    """Check that every port is free or held by one of the processes `ours`; `ports` maps the setting's name to it.

    Raises:
        PortInUse: Names each port that is taken, the setting that chose it, and the process that holds it.
        ValueError: Two settings name the same port.
    """
    _check_distinct(ports)
    wanted = set(ports.values())
    foreign = {listener.port: listener for listener in listeners(wanted) if listener.pid not in ours}
    taken = [f"{name}: {port} is held by {foreign[port]}" for name, port in ports.items() if port in foreign]
    if taken:
        problems = "\n".join(f"- {line}" for line in taken)
        raise PortInUse(f"ports are in use:\n{problems}\nStop that process, or choose another port in the setting.")


def find_free_ports(count: int) -> list[int]:
    """Return `count` different ports of 127.0.0.1 that were free a moment ago; for tests."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def listeners(ports: Collection[int]) -> list[Listener]:
    """Return the sockets that listen on any of `ports`, at whatever address."""
    found = {inode: (port, uid) for port, uid, inode in _listening_sockets() if port in ports}
    holders = _holders(found.keys()) if found else {}
    return [_listener(port, uid, holders.get(inode)) for inode, (port, uid) in found.items()]


def _check_distinct(ports: Mapping[str, int]) -> None:
    names: dict[int, str] = {}
    for name, port in ports.items():
        if (other := names.setdefault(port, name)) != name:
            raise ValueError(f"{other} and {name} are both {port}: choose different ports")


def _listening_sockets() -> Iterator[tuple[int, int, str]]:
    """Yield port, user id and inode of each listening TCP socket."""
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net", table)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()  # see proc_net_tcp.txt of the kernel's documentation
            if fields[3] == LISTEN:
                yield int(fields[1].rsplit(":", 1)[1], 16), int(fields[7]), fields[9]


def _holders(inodes: Collection[str]) -> dict[str, int]:
    """Return the process that holds each socket, as far as this user may see it."""
    links = {f"socket:[{inode}]": inode for inode in inodes}
    holders: dict[str, int] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            for target in _descriptors(process):
                if target in links:
                    holders.setdefault(links[target], int(process.name))
    return holders


def _descriptors(process: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):  # the process has ended, or is another user's
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(descriptor.readlink())


def _listener(port: int, uid: int, pid: int | None) -> Listener:
    command = None
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/comm").read_text().strip() if pid else None
    return Listener(port=port, user=_user(uid), pid=pid, command=command)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
