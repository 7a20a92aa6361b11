"""Calls of supervisord's XML-RPC interface, over its unix socket in a sandbox's `run` directory."""

from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from collections.abc import Collection, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from observatory.files.sockets import short_path
from observatory.runtime.errors import SandboxError
from observatory.runtime.programs import ENDED, SOCKET_NAME

CALL_SECONDS = 10.0


class Fault:
    """Fault codes of supervisord's API (`supervisor.xmlrpc.Faults`)."""

    BAD_NAME = 10
    SPAWN_ERROR = 50
    ALREADY_STARTED = 60
    NOT_RUNNING = 70
    ALREADY_ADDED = 90
    STILL_RUNNING = 91


@dataclass(frozen=True)
class SupervisordRpc:
    """The interface of the supervisord that runs in the sandbox over the directory `home`."""

    home: Path

    def call(self, method: str, *arguments: str | bool, timeout: float = CALL_SECONDS) -> Any:
        """Call `method` and return its result.

        Raises:
            SandboxError: supervisord refuses the call or does not answer.
        """
        try:
            return self._request(method, *arguments, timeout=timeout)
        except xmlrpc.client.Fault as fault:
            raise self._refused(method, fault) from fault

    def call_tolerating(
        self, codes: int | Set[int], method: str, *arguments: str | bool, timeout: float | None = CALL_SECONDS
    ) -> bool:
        """Call `method`; return False if supervisord refuses it with one of the fault `codes`.

        Raises:
            SandboxError: it refuses the call with another fault or does not answer.
        """
        try:
            self._request(method, *arguments, timeout=timeout)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in (codes if isinstance(codes, Set) else {codes}):
                raise self._refused(method, fault) from fault
            return False
        return True

    def reread(self) -> tuple[set[str], set[str]]:
        """Return the programs on disk that supervisord lacks, and those that differ from what it has loaded."""
        ((added, changed, _removed),) = self.call("reloadConfig")
        return set(added), set(changed)

    def states(self) -> dict[str, str]:
        """Return the state of every loaded program, by name."""
        return {str(info["name"]): str(info["statename"]) for info in self.call("getAllProcessInfo")}

    def have_ended(self, names: Collection[str]) -> bool:
        """Return whether none of these programs has a process or is going to start one."""
        return all(state in ENDED for name, state in self.states().items() if name in names)

    def _refused(self, method: str, fault: xmlrpc.client.Fault) -> SandboxError:
        return SandboxError(f"the supervisor of {self.home} refused {method}: {fault.faultString}")

    def _request(self, method: str, *arguments: str | bool, timeout: float | None) -> Any:
        try:
            transport = _Transport(self.home / "run", timeout)
            with xmlrpc.client.ServerProxy("http://supervisor", transport=transport) as server:
                return getattr(server.supervisor, method)(*arguments)
        except (OSError, http.client.HTTPException) as error:
            raise SandboxError(
                f"the supervisor of {self.home} does not answer: {error}",
                remedy="Run `observatory up`: it starts the supervisor again if the watcher has not done so already.",
            ) from error


class _Transport(xmlrpc.client.Transport):
    """XML-RPC over the unix socket in `directory`, however long its path."""

    def __init__(self, directory: Path, timeout: float | None) -> None:
        super().__init__()
        self._directory, self._timeout = directory, timeout

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = _Connection(self._directory, self._timeout)
        self._connection = host, connection  # where the base class closes it
        return connection


class _Connection(http.client.HTTPConnection):
    def __init__(self, directory: Path, timeout: float | None) -> None:
        super().__init__("supervisor", timeout=timeout)
        self._directory = directory

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            with short_path(self._directory) as directory:
                self.sock.connect(f"{directory}/{SOCKET_NAME}")
        except OSError:
            self.sock.close()
            raise
