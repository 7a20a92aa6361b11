"""Programs of the supervisor: the configuration and the status of each."""

from __future__ import annotations

import functools
import hashlib
import re
import shlex
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

CONFIGURATION_FILE = "/srv/etc/supervisord.conf"
PROGRAMS = "/srv/etc/supervisor.d"
SOCKET_NAME, SUPERVISOR_PID_FILE = "supervisor.sock", "supervisord.pid"
# A limit for a daemon that floods its log. The regular rotation, by size and age, is a scheduled job
# (`observatory.nodes.logrotate`), which finds the files that supervisord rotates as <name>.log.1.
LOG_BYTES, LOG_BACKUPS = 100_000_000, 1
CONFIGURATION = f"""\
[unix_http_server]
file=/srv/run/{SOCKET_NAME}
chmod=0600

[supervisord]
logfile=/srv/log/supervisord.log
logfile_maxbytes={LOG_BYTES}
logfile_backups={LOG_BACKUPS}
pidfile=/srv/run/{SUPERVISOR_PID_FILE}
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
VARIABLE = "OBSERVATORY_PROGRAM"
ENDED = frozenset({"ABSENT", "EXITED", "FATAL", "UNKNOWN", "STOPPED"})
GIVEN_UP = frozenset({"EXITED", "FATAL", "UNKNOWN"})  # of a program that restarts, EXITED lasts if its restart failed


@dataclass(frozen=True, kw_only=True)
class Program:
    """A daemon: what to run and how it is stopped.

    `command` runs in `directory` with `environment` added to the sandbox's own (PATH, HOME, LANG, USER). It counts as
    started after `start_seconds`; one that ends earlier is tried `start_retries` times again, with growing pauses.
    Stopping sends `stop_signal`, and kills after `stop_seconds`. Lower `priority` starts first and stops last. Output
    goes to `log/<name>.log`, which may be renamed at any time: supervisord opens it again at SIGUSR2.
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
            raise ValueError(f"program {self.name}: {bad[0]!r} is not a name of an environment variable")
        if any("\0" in text for text in (*self.command, *self.environment.values())):
            raise ValueError(f"program {self.name}: a NUL character cannot be passed to a process")

    @functools.cached_property
    def script(self) -> str:
        """The shell script that becomes the daemon."""
        exports = (f"export {key}={shlex.quote(value)}\n" for key, value in sorted(self.environment.items()))
        return f"#!/bin/sh\n{''.join(exports)}cd {shlex.quote(self.directory)} && exec {shlex.join(self.command)}\n"

    @property
    def files(self) -> dict[str, str]:
        """The contents of the files of the supervisor, by path inside the sandbox."""
        return {f"{PROGRAMS}/{self.name}.sh": self.script, f"{PROGRAMS}/{self.name}.conf": self.configuration}

    @functools.cached_property
    def configuration(self) -> str:
        """The section that supervisord reads; with the script's digest, since it reloads only sections that changed."""
        digest = hashlib.sha256(self.script.encode()).hexdigest()
        return f"""\
[program:{self.name}]
command=/bin/sh {PROGRAMS}/{self.name}.sh
environment={VARIABLE}="{self.name}",{VARIABLE}_DIGEST="{digest}"
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
class LoadedProgram:
    """What a written configuration says about the end of a program; the fields are those of `Program`."""

    name: str
    priority: int
    restart: bool
    stop_signal: signal.Signals
    stop_seconds: int

    @classmethod
    def parse(cls, name: str, configuration: str) -> Self | None:
        """Return what `Program.configuration` wrote, None where the text is something else."""
        values = dict(line.partition("=")[::2] for line in configuration.splitlines())
        try:
            return cls(
                name=name,
                priority=int(values["priority"]),
                restart=values["autorestart"] == "true",
                stop_signal=signal.Signals[f"SIG{values['stopsignal']}"],
                stop_seconds=int(values["stopwaitsecs"]),
            )
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True, kw_only=True)
class ProgramStatus:
    """What the supervisor reports of a program.

    `state` is one of ABSENT, STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL, UNKNOWN. `pid` and
    `since` are None unless it runs, `exit_status` is None unless EXITED. `description` is a text for display.
    """

    name: str
    state: str
    pid: int | None
    since: datetime | None
    exit_status: int | None
    description: str

    @property
    def running(self) -> bool:
        """Whether it has a process that is not being stopped."""
        return self.state in {"STARTING", "RUNNING"}

    @classmethod
    def absent(cls, name: str) -> Self:
        """Return the status of a program that the supervisor does not have."""
        return cls(
            name=name,
            state="ABSENT",
            pid=None,
            since=None,
            exit_status=None,
            description="the supervisor has no such program",
        )

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> Self:
        """Return the status that an answer of supervisord's getAllProcessInfo contains."""
        state, running = str(info["statename"]), bool(info["pid"])
        return cls(
            name=str(info["name"]),
            state=state,
            pid=int(info["pid"]) if running else None,
            since=datetime.fromtimestamp(int(info["start"]), UTC) if running else None,
            exit_status=int(info["exitstatus"]) if state == "EXITED" else None,
            description=str(info["spawnerr"] or info["description"]),
        )
