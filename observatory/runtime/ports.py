"""TCP ports: which process holds one, and which are free."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from observatory.runtime.errors import PortInUse


@dataclass(frozen=True, kw_only=True)
class Listener:
    """A listening socket. Fields are None for a process of another user, which this user may not inspect."""

    port: int
    pid: int | None = None
    command: str | None = None
    user: str | None = None

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}) of user {self.user}" if self.pid else "a process of another user"


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
        raise PortInUse(
            f"ports are in use:\n{problems}\nStop that process, or choose another port in the stack's file, such as "
            "Pulumi.local.yaml: the group llm-observatory:ports, see docs/settings.md."
        )


def find_free_ports(count: int) -> list[int]:
    """Return `count` different free ports of 127.0.0.1, for tests; another process may take one at any time."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def listeners(ports: Collection[int]) -> list[Listener]:
    """Return the processes that listen on any of `ports`, at any address."""
    import psutil  # noqa: PLC0415 - only where ports are checked

    return [
        _listener(each.laddr.port, each.pid)
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port in ports
    ]


def _check_distinct(ports: Mapping[str, int]) -> None:
    names: dict[int, str] = {}
    for name, port in ports.items():
        if (other := names.setdefault(port, name)) != name:
            raise ValueError(f"{other} and {name} are both {port}: choose different ports")


def _listener(port: int, pid: int | None) -> Listener:
    import psutil  # noqa: PLC0415 - only where ports are checked

    if pid is not None:
        with contextlib.suppress(psutil.Error):  # the process has ended
            process = psutil.Process(pid)
            return Listener(port=port, pid=pid, command=process.name(), user=process.username())
    return Listener(port=port)
