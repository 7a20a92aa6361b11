"""supervisord, which owns every daemon of the local stack, driven from the host over its socket.

The configuration of each program is a file of its own. What a program is for, and which files it reads, is not known
here.
"""

from __future__ import annotations

import http.client
import os
import socket
import time
import xmlrpc.client
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from observatory.machine.errors import DaemonFailed
from observatory.machine.files import locked, tail, write_file
from observatory.machine.probe import Probe

SOCKET = "run/supervisor.sock"
CONFIG = "etc/supervisord.conf"
PROGRAMS = "etc/supervisor.d"
LOG_LINES = 20
POLL_S = 0.05

# Codes of supervisord's XML-RPC interface, supervisor/xmlrpc.py.
BAD_NAME, ALREADY_STARTED, NOT_RUNNING, SPAWN_ERROR = 10, 60, 70, 50
GONE = ("FATAL", "EXITED", "UNKNOWN")

MAIN_CONFIG = """\
[supervisord]
nodaemon=true
logfile=/srv/log/supervisord.log
logfile_maxbytes=5MB
logfile_backups=1
pidfile=/srv/run/supervisord.pid
umask=077

[unix_http_server]
file=/srv/run/supervisor.sock
chmod=0600

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[include]
files=/srv/etc/supervisor.d/*.conf
"""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A daemon: command line and environment are visible to other users, so neither may hold a secret."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = "TERM"
    stop_seconds: int = 10

    def render(self) -> str:
        """Return the program's section; it is restarted for ever, and its log is bounded."""
        environment = ",".join(f"{key}={_quoted(value)}" for key, value in sorted(self.environment.items()))
        lines = [
            f"[program:{self.name}]",
            f"command={' '.join(_quoted(word) for word in self.command)}",
            f"environment={environment}",
            "directory=/srv",
            "autorestart=true",
            "startsecs=1",
            "startretries=3",
            f"stopsignal={self.stop_signal}",
            f"stopwaitsecs={self.stop_seconds}",
            "killasgroup=true",
            "redirect_stderr=true",
            f"stdout_logfile=/srv/log/{self.name}.log",
            "stdout_logfile_maxbytes=20MB",
            "stdout_logfile_backups=2",
        ]
        return "\n".join(lines) + "\n"


def _quoted(word: str) -> str:
    """Quote for supervisord, which splits as a shell does, after expanding `%`."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


@dataclass(frozen=True, kw_only=True)
class ProgramStatus:
    """What supervisord says of a program: `state` in its words, or ABSENT."""

    state: str
    pid: int | None = None
    exit_status: int | None = None
    description: str = ""

    @property
    def running(self) -> bool:
        """Whether there is a process, ready or not."""
        return self.state in ("RUNNING", "STARTING")


class Supervisor:
    """The supervisor of one sandbox; `home` is the sandbox's directory on the host."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def answers(self) -> bool:
        """Tell whether supervisord is up and takes orders."""
        try:
            return bool(self._call("getState")["statename"] == "RUNNING")
        except OSError:
            return False

    def shutdown(self) -> None:
        """Ask supervisord to stop every program and itself."""
        self._call("shutdown")

    def apply(self, program: Program) -> bool:
        """Run `program` as it is described; return whether it was (re)started for that.

        Raises:
            DaemonFailed: supervisord cannot start it at all.
        """
        with locked(self._home / "run/supervisor.lock"):
            file = self._home / PROGRAMS / f"{program.name}.conf"
            rendered = program.render()
            if not file.exists() or file.read_text() != rendered:
                write_file(file, rendered)
            added, changed, _removed = self._call("reloadConfig")[0]
            if program.name in changed:
                self._drop(program.name)
            if program.name in (*added, *changed):
                self._call("addProcessGroup", program.name)
                return True
        return self._start(program.name)

    def remove(self, name: str) -> None:
        """Stop a program and forget it; an unknown one is no error."""
        with locked(self._home / "run/supervisor.lock"):
            self._drop(name)
            (self._home / PROGRAMS / f"{name}.conf").unlink(missing_ok=True)
            self._call("reloadConfig")

    def restart(self, name: str) -> None:
        """Stop a program and start it again."""
        self._tolerating(NOT_RUNNING, "stopProcess", name, True)
        self._start(name)

    def signal(self, name: str, signal: str) -> None:
        """Send a signal, named without SIG, to the program's process."""
        self._call("signalProcess", name, signal)

    def status(self, name: str) -> ProgramStatus:
        """Return the state of one program."""
        try:
            info = self._call("getProcessInfo", name)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == BAD_NAME:
                return ProgramStatus(state="ABSENT")
            raise
        return ProgramStatus(
            state=info["statename"],
            pid=info["pid"] or None,
            exit_status=info["exitstatus"],
            description=info["spawnerr"] or info["description"],
        )

    def log_tail(self, name: str, lines: int = LOG_LINES) -> str:
        """Return the last lines of a program's log."""
        return tail(self._home / "log" / f"{name}.log", lines)

    def wait_ready(self, name: str, probe: Probe, *, timeout: float) -> None:
        """Wait until the program runs and answers its probe.

        Raises:
            DaemonFailed: it died (known at once) or is not ready after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            status = self.status(name)
            if status.state in GONE or status.state == "ABSENT":
                raise self._failure(name, f"died at its start, exit status {status.exit_status}")
            if status.running and probe.check():
                return
            if time.monotonic() > deadline:
                raise self._failure(name, f"is not ready after {timeout:.0f} s ({probe}; {status.state.lower()})")
            time.sleep(POLL_S)

    def _failure(self, name: str, what: str) -> DaemonFailed:
        log = self._home / "log" / f"{name}.log"
        return DaemonFailed(f"{name} {what}. Last lines of {log}:\n{self.log_tail(name)}")

    def _start(self, name: str) -> bool:
        """Start a program unless it runs; tell whether it was started."""
        try:
            self._call("startProcess", name, False)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == ALREADY_STARTED:
                return False
            raise self._failure(name, f"cannot be started: {fault.faultString}") from fault
        return True

    def _drop(self, name: str) -> None:
        self._tolerating(BAD_NAME, "stopProcessGroup", name, True)
        self._tolerating(BAD_NAME, "removeProcessGroup", name)

    def _tolerating(self, code: int, method: str, *arguments: Any) -> None:
        try:
            self._call(method, *arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != code:
                raise

    def _call(self, method: str, *arguments: Any) -> Any:
        proxy = xmlrpc.client.ServerProxy("http://supervisor/RPC2", transport=_Transport(self._home / SOCKET))
        with proxy:
            return getattr(proxy.supervisor, method)(*arguments)


class _Transport(xmlrpc.client.Transport):
    """XML-RPC over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:  # noqa: ARG002 - the interface's signature
        return _UnixConnection(self._path)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket, whose path may be longer than the 107 bytes of `sun_path`."""

    def __init__(self, path: Path) -> None:
        super().__init__("supervisor")
        self._path = path

    def connect(self) -> None:
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(f"/proc/self/fd/{directory}/{self._path.name}")
        finally:
            os.close(directory)
