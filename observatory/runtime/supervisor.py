"""The daemons of a sandbox: declared as programs, started, watched and restarted by supervisord.

supervisord is driven by XML-RPC over its unix socket in the sandbox's `run` directory. Each program is two files in
`etc/supervisor.d`: what supervisord reads, and a shell script that sets the environment and becomes the daemon, since
supervisord's own syntax cannot express every value.

    supervisor.apply(Program(name=, command=, ...)) -> bool      # written, (re)started if changed, running; idempotent
    supervisor.remove(name) -> None                              # stopped and forgotten; idempotent
    supervisor.start(name), stop(name), restart(name), signal(name, "HUP")
    supervisor.status(name) -> ProgramStatus; supervisor.statuses() -> list[ProgramStatus]
    supervisor.wait_ready(name, probe, timeout=30) -> None       # probe: Probe, or () -> str | None
    supervisor.log_tail(name, lines=20) -> list[str]

Raises `SandboxError` where supervisord refuses or does not answer, `DaemonFailed` where a daemon ends. Command
lines and environments are no place for secrets: both can be read in /proc; pass the path of a file instead.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import re
import shlex
import socket
import time
import xmlrpc.client
from collections.abc import Callable, Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observatory.files.sockets import short_path
from observatory.runtime.errors import DaemonFailed, SandboxError

if TYPE_CHECKING:
    from observatory.runtime.sandbox import Sandbox

CONFIGURATION_FILE = "/srv/etc/supervisord.conf"
PROGRAMS = "/srv/etc/supervisor.d"
SOCKET_NAME = "supervisor.sock"
# A guard against a daemon that floods its log, not the rotation: that is a job of its own, by size and age
# (`observatory.nodes.logrotate`). What supervisord moves away itself, that job finds as <name>.log.1.
LOG_BYTES, LOG_BACKUPS = 100_000_000, 1
CONFIGURATION = f"""\
[unix_http_server]
file=/srv/run/{SOCKET_NAME}
chmod=0600

[supervisord]
logfile=/srv/log/supervisord.log
logfile_maxbytes={LOG_BYTES}
logfile_backups={LOG_BACKUPS}
pidfile=/srv/run/supervisord.pid
childlogdir=/srv/log
nocleanup=true
umask=077

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[include]
files={PROGRAMS}/*.conf
"""
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TAIL_BYTES = 65_536
# Of a failed daemon's last lines: a dynamic provider tells its error in the metadata of gRPC, which has room for 8 KiB.
_TOLD_CHARACTERS = 3000
MOST_STARTS = 4  # of one daemon while it is waited for, before it counts as failed

CALL_SECONDS = 10.0
RUNNING = 1  # `statecode` of getState, https://supervisord.org/api.html


class Fault:
    """Fault codes of supervisord's API (`supervisor.xmlrpc.Faults`)."""

    BAD_NAME = 10
    SPAWN_ERROR = 50
    ALREADY_STARTED = 60
    NOT_RUNNING = 70
    ALREADY_ADDED = 90
    STILL_RUNNING = 91


ENDED = frozenset({"ABSENT", "EXITED", "FATAL", "UNKNOWN", "STOPPED"})


@dataclass(frozen=True, kw_only=True)
class Program:
    """A daemon: what to run and how it is stopped.

    `command` runs in `directory` with `environment` added to the sandbox's own (PATH, HOME, LANG, USER). It counts as
    started after `start_seconds`; one that ends earlier is tried `start_retries` times again, with growing pauses.
    Stopping sends `stop_signal`, and kills after `stop_seconds`. Lower `priority` starts first and stops last. Output
    goes to `log/<name>.log`, which may be renamed at any time: a SIGUSR2 has supervisord open it anew.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = "/srv"
    restart: bool = True
    stop_signal: str = "TERM"
    stop_seconds: int = 10
    priority: int = 999
    start_seconds: int = 1
    start_retries: int = 3

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"program name {self.name!r}: use lower-case letters, digits, - and _")
        if bad := [key for key in self.environment if not _VARIABLE.fullmatch(key)]:
            raise ValueError(f"program {self.name}: {bad[0]!r} is no name of an environment variable")
        if any("\0" in text for text in (*self.command, *self.environment.values())):
            raise ValueError(f"program {self.name}: a NUL character cannot be passed to a process")

    @functools.cached_property
    def script(self) -> str:
        """The shell script that becomes the daemon."""
        exports = (f"export {key}={shlex.quote(value)}\n" for key, value in sorted(self.environment.items()))
        return f"#!/bin/sh\n{''.join(exports)}cd {shlex.quote(self.directory)} && exec {shlex.join(self.command)}\n"

    @functools.cached_property
    def configuration(self) -> str:
        """The section that supervisord reads; it names the script's digest, so that any change is seen."""
        digest = hashlib.sha256(self.script.encode()).hexdigest()
        return f"""\
[program:{self.name}]
command=/bin/sh {PROGRAMS}/{self.name}.sh
environment=OBSERVATORY_PROGRAM="{self.name}",OBSERVATORY_PROGRAM_DIGEST="{digest}"
autorestart={str(self.restart).lower()}
stopsignal={self.stop_signal}
stopwaitsecs={self.stop_seconds}
priority={self.priority}
startsecs={self.start_seconds}
startretries={self.start_retries}
umask=077
redirect_stderr=true
stdout_logfile=/srv/log/{self.name}.log
stdout_logfile_maxbytes={LOG_BYTES}
stdout_logfile_backups={LOG_BACKUPS}
"""


@dataclass(frozen=True, kw_only=True)
class ProgramStatus:
    """What the supervisor knows of a program.

    `state` is one of ABSENT, STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL, UNKNOWN. `pid` and
    `since` are None unless it runs, `exit_status` is None unless EXITED. `description` is for people.
    """

    name: str
    state: str
    pid: int | None
    since: datetime | None
    exit_status: int | None
    description: str

    @property
    def running(self) -> bool:
        """Whether it has a process that was not asked to stop."""
        return self.state in {"STARTING", "RUNNING"}


@dataclass(frozen=True, kw_only=True)
class Supervisor:
    """The supervisor of one sandbox; see the module for its operations."""

    sandbox: Sandbox

    def apply(self, program: Program) -> bool:
        """Make `program` as declared and running; return whether it had to be (re)started.

        Repeating an interrupted call finishes it: what the supervisor has loaded is compared, not what is on disk.
        """
        with self._lock(program.name):
            self.sandbox.write_file(f"{PROGRAMS}/{program.name}.sh", program.script)
            self.sandbox.write_file(f"{PROGRAMS}/{program.name}.conf", program.configuration)
            added, changed = self._reread()
            if program.name in changed:
                self._forget(program.name)
            new = program.name in changed | added
            if new:
                self._tolerating(Fault.ALREADY_ADDED, "addProcessGroup", program.name)
            return self._ensure_started(program.name) or new

    def remove(self, name: str) -> None:
        """Stop the program `name` and forget it, if there is one. Its log stays."""
        with self._lock(name):
            for suffix in ("conf", "sh"):
                self.sandbox.host_path(f"{PROGRAMS}/{name}.{suffix}").unlink(missing_ok=True)
            if self.sandbox.alive():
                self._forget(name)

    def start(self, name: str) -> bool:
        """Start the program `name`; return False if it was running."""
        with self._lock(name):
            return self._ensure_started(name)

    def stop(self, name: str) -> None:
        """Stop the program `name` and wait until it has ended; a supervisor that starts anew starts it again."""
        with self._lock(name):
            self._end(name)

    def restart(self, name: str) -> None:
        """Stop the program `name`, wait until it has ended, and start it."""
        with self._lock(name):
            self._end(name)
            self._ensure_started(name)

    def signal(self, name: str, signal_name: str) -> None:
        """Send a signal such as "HUP" to the process of the program `name`."""
        self._call("signalProcess", name, signal_name)

    def status(self, name: str) -> ProgramStatus:
        """Return the state of the program `name`; ABSENT if there is none."""
        return next((status for status in self.statuses() if status.name == name), _absent(name))

    def statuses(self) -> list[ProgramStatus]:
        """Return the state of every program, by name; none if the supervisor does not run."""
        if not self.answers():
            return []
        return sorted((_status(info) for info in self._call("getAllProcessInfo")), key=lambda status: status.name)

    def log_tail(self, name: str, lines: int = 20) -> list[str]:
        """Return the last `lines` lines that the program `name` wrote (within the last 64 KiB)."""
        path = self.sandbox.host_path(f"/srv/log/{name}.log")
        if not path.is_file():
            return []
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-lines:]

    def wait_ready(self, name: str, probe: Callable[[], str | None], *, timeout: float = 30) -> None:
        """Wait until the program `name` runs and `probe`, which returns why it is not ready yet, returns None.

        Raises:
            DaemonFailed: It ended, or was not ready after `timeout` seconds; with its last log lines.
        """
        deadline = time.monotonic() + timeout
        starts: set[int] = set()
        while True:
            status = self.status(name)
            starts |= {status.pid} if status.pid else set()
            if status.state in ENDED or len(starts) > MOST_STARTS:
                raise self._failure(name, f"does not stay up: {self._last_end(name) or status.description}")
            reason = probe() if status.running else status.description
            if reason is None:
                return
            if time.monotonic() > deadline:
                raise self._failure(name, f"was not ready after {timeout:g} s: {reason}")
            time.sleep(0.05)

    def answers(self) -> bool:
        """Return whether the supervisor runs and answers."""
        try:
            return int(self._call("getState")["statecode"]) == RUNNING
        except SandboxError:
            return False

    def stop_all(self) -> None:
        """Stop every program: those of one priority at once, the last started first.

        supervisord's own shutdown stops one after the other.
        """
        loaded = {status.name for status in self.statuses()}
        programs = [info for info in self._call("getAllConfigInfo") if info["name"] in loaded]
        for priority in sorted({info["process_prio"] for info in programs}, reverse=True):
            names = {info["name"] for info in programs if info["process_prio"] == priority}
            for name in names:
                self._tolerating(Fault.NOT_RUNNING, "stopProcess", name, False)
            while any(status.name in names and status.state not in ENDED for status in self.statuses()):
                time.sleep(0.02)

    def shutdown(self) -> int:
        """Ask the supervisor to stop every program and then itself; return its pid at once."""
        pid = int(self._call("getPID"))
        self._call("shutdown")
        return pid

    def _lock(self, name: str) -> AbstractContextManager[int]:
        return self.sandbox.lock(f"program-{name}")

    def _reread(self) -> tuple[set[str], set[str]]:
        """Return the programs on disk that the supervisor does not have, and those that it has otherwise."""
        ((added, changed, _removed),) = self._call("reloadConfig")
        return set(added), set(changed)

    def _forget(self, name: str) -> None:
        while self._state(name) != "ABSENT":
            self._end(name)
            # One that has died may have been started anew in between.
            self._tolerating({Fault.BAD_NAME, Fault.STILL_RUNNING}, "removeProcessGroup", name)

    def _end(self, name: str) -> None:
        """Stop a program and wait until it has ended."""
        self._tolerating(Fault.NOT_RUNNING, "stopProcess", name, wait=None)
        self._wait_stopped(name)

    def _ensure_started(self, name: str) -> bool:
        self._wait_stopped(name)
        # A program that cannot be spawned is explained by whoever waits for it to be ready.
        return self._tolerating({Fault.ALREADY_STARTED, Fault.SPAWN_ERROR}, "startProcess", name, False)

    def _wait_stopped(self, name: str) -> None:
        """Wait for the end of a program that a command, which may have died meanwhile, has begun to stop."""
        while self._state(name) == "STOPPING":  # supervisord kills it after its `stop_seconds`
            time.sleep(0.05)

    def _state(self, name: str) -> str:
        infos = self._call("getAllProcessInfo")
        return next((str(info["statename"]) for info in infos if info["name"] == name), "ABSENT")

    def _tolerating(
        self, codes: int | Set[int], method: str, *arguments: str | bool, wait: float | None = CALL_SECONDS
    ) -> bool:
        """Call `method`; return False if the supervisor refuses with one of the faults `codes`."""
        try:
            self._request(method, *arguments, timeout=wait)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in (codes if isinstance(codes, Set) else {codes}):
                raise self._refused(method, fault) from fault
            return False
        return True

    def _call(self, method: str, *arguments: str | bool) -> Any:
        try:
            return self._request(method, *arguments, timeout=CALL_SECONDS)
        except xmlrpc.client.Fault as fault:
            raise self._refused(method, fault) from fault

    def _refused(self, method: str, fault: xmlrpc.client.Fault) -> SandboxError:
        return SandboxError(f"the supervisor of {self.sandbox.home} refused {method}: {fault.faultString}")

    def _request(self, method: str, *arguments: str | bool, timeout: float | None) -> Any:
        run = self.sandbox.home / "run"
        try:
            with xmlrpc.client.ServerProxy("http://supervisor", transport=_Transport(run, timeout)) as server:
                return getattr(server.supervisor, method)(*arguments)
        except (OSError, http.client.HTTPException) as error:
            raise SandboxError(f"the supervisor of {self.sandbox.home} does not answer: {error}") from error

    def _last_end(self, name: str) -> str | None:
        """Return how the program last ended, such as `exit status 1`; the API tells it only of those that ran long."""
        ends = re.findall(rf" exited: {name} \((.*?)[;)]", "\n".join(self.log_tail("supervisord", 200)))
        return str(ends[-1]) if ends else None

    def _failure(self, name: str, what: str) -> DaemonFailed:
        lines = "\n".join(f"  {line}" for line in self.log_tail(name)) or "  (it wrote nothing)"
        lines = lines if len(lines) <= _TOLD_CHARACTERS else f"  …{lines[-_TOLD_CHARACTERS:]}"
        return DaemonFailed(f"{name} {what}. The last lines of {self.sandbox.home}/log/{name}.log:\n{lines}")


def _absent(name: str) -> ProgramStatus:
    return ProgramStatus(
        name=name,
        state="ABSENT",
        pid=None,
        since=None,
        exit_status=None,
        description="the supervisor has no such program",
    )


def _status(info: Mapping[str, Any]) -> ProgramStatus:
    state = str(info["statename"])
    running = bool(info["pid"])
    exit_status = int(info["exitstatus"]) if state == "EXITED" else None
    description = str(info["spawnerr"] or info["description"])
    return ProgramStatus(
        name=str(info["name"]),
        state=state,
        pid=int(info["pid"]) if running else None,
        since=datetime.fromtimestamp(int(info["start"]), UTC) if running else None,
        exit_status=exit_status,
        description=description,
    )


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
