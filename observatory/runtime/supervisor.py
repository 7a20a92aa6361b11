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
lines and environments must not contain secrets, since both can be read in /proc: pass the path of a file instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from observatory.runtime.errors import SandboxError
from observatory.runtime.orphans import loaded_programs
from observatory.runtime.program_logs import failure, last_end, log_tail
from observatory.runtime.programs import (
    CONFIGURATION,
    CONFIGURATION_FILE,
    ENDED,
    GIVEN_UP,
    PROGRAMS,
    Program,
    ProgramStatus,
)
from observatory.runtime.sandbox_files import SandboxFiles
from observatory.runtime.supervisord_rpc import CALL_SECONDS, Fault, SupervisordRpc
from observatory.waiting import wait_until

MOST_STARTS = 4  # of one daemon while `wait_ready` waits, before it counts as failed
RUNNING = 1  # `statecode` of getState, https://supervisord.org/api.html


@dataclass(frozen=True, kw_only=True)
class Supervisor:
    """The supervisor of one sandbox; see the module for its operations."""

    files: SandboxFiles

    def apply(self, program: Program) -> bool:
        """Configure and run `program` as declared; return whether it was started or restarted.

        It compares with the configuration that supervisord has loaded, not with the files, so a repeated call finishes
        an interrupted one.
        """
        with self._lock(program.name):
            for path, content in ((CONFIGURATION_FILE, CONFIGURATION), *program.files.items()):
                self.files.write_file(path, content)
            added, changed = self._rpc.reread()
            if program.name in changed:
                self._unload(program.name)
            new = program.name in changed | added
            if new:
                self._rpc.call_tolerating(Fault.ALREADY_ADDED, "addProcessGroup", program.name)
            return self._ensure_started(program.name) or new

    def remove(self, name: str) -> None:
        """Stop the program `name` and remove it, if it exists. Its log stays."""
        with self._lock(name):
            for suffix in ("conf", "sh"):
                self.files.host_path(f"{PROGRAMS}/{name}.{suffix}").unlink(missing_ok=True)
            if self.answers():
                self._unload(name)

    def start(self, name: str) -> bool:
        """Start the program `name`; return False if it was running."""
        with self._lock(name):
            return self._ensure_started(name)

    def stop(self, name: str) -> None:
        """Stop the program `name` and wait until it has ended; a restart of the supervisor starts it again."""
        with self._lock(name):
            self._end(name)

    def restart(self, name: str) -> None:
        """Stop the program `name`, wait until it has ended, and start it."""
        with self._lock(name):
            self._end(name)
            self._ensure_started(name)

    def signal(self, name: str, signal_name: str) -> None:
        """Send a signal such as "HUP" to the process of the program `name`."""
        self._rpc.call("signalProcess", name, signal_name)

    def status(self, name: str) -> ProgramStatus:
        """Return the state of the program `name`; ABSENT if there is none, or if the supervisor does not run."""
        try:
            return ProgramStatus.from_info(self._rpc.call("getProcessInfo", name))
        except SandboxError:
            return ProgramStatus.absent(name)

    def statuses(self) -> list[ProgramStatus]:
        """Return the state of every program, by name; none if the supervisor does not run."""
        try:
            found = self._rpc.call("getAllProcessInfo")
        except SandboxError:
            return []
        return sorted((ProgramStatus.from_info(info) for info in found), key=lambda status: status.name)

    def log_tail(self, name: str, lines: int = 20) -> list[str]:
        """Return the last `lines` lines of the log of the program `name`, within its last 64 KiB."""
        return log_tail(self.files, name, lines)

    def wait_ready(self, name: str, probe: Callable[[], str | None], *, timeout: float = 30) -> None:
        """Wait until the program `name` runs and `probe`, which returns why it is not ready yet, returns None.

        Raises:
            DaemonFailed: It ended, or was not ready after `timeout` seconds; with its last log lines.
        """
        starts: set[int] = set()
        reason: str | None = None

        def ready() -> bool:
            nonlocal reason
            status = self.status(name)
            starts.update({status.pid} if status.pid else ())
            if status.state in ENDED or len(starts) > MOST_STARTS:
                raise failure(self.files, name, f"does not stay up: {last_end(self.files, name) or status.description}")
            reason = probe() if status.running else status.description
            return reason is None

        if not wait_until(ready, timeout):
            raise failure(self.files, name, f"was not ready after {timeout:g} s: {reason}")

    def answers(self, timeout: float = CALL_SECONDS) -> bool:
        """Return whether the supervisor runs and answers within `timeout` seconds."""
        try:
            return int(self._rpc.call("getState", timeout=timeout)["statecode"]) == RUNNING
        except SandboxError:
            return False

    def stop_all(self) -> None:
        """Stop every program: those of one priority at once, the last started first.

        supervisord's own shutdown stops one after the other.
        """
        loaded = {status.name for status in self.statuses()}
        programs = [info for info in self._rpc.call("getAllConfigInfo") if info["name"] in loaded]
        for priority in sorted({info["process_prio"] for info in programs}, reverse=True):
            names = {info["name"] for info in programs if info["process_prio"] == priority}
            for name in names:
                self._rpc.call_tolerating(Fault.NOT_RUNNING, "stopProcess", name, False)
            wait_until(functools.partial(self._rpc.have_ended, names))

    def pid(self) -> int:
        """Return the pid of the supervisor."""
        return int(self._rpc.call("getPID"))

    def shutdown(self) -> int:
        """Request that the supervisor stops every program and then itself; return its pid at once."""
        pid = self.pid()
        self._rpc.call("shutdown")
        return pid

    @property
    def _rpc(self) -> SupervisordRpc:
        return SupervisordRpc(self.files.home)

    def _lock(self, name: str) -> AbstractContextManager[int]:
        return self.files.lock(f"program-{name}")

    def _unload(self, name: str) -> None:
        while name in self._rpc.states():
            self._end(name)
            # supervisord may have restarted one that died in between.
            self._rpc.call_tolerating({Fault.BAD_NAME, Fault.STILL_RUNNING}, "removeProcessGroup", name)

    def _end(self, name: str) -> None:
        """Stop a program and wait until it has ended."""
        self._rpc.call_tolerating(Fault.NOT_RUNNING, "stopProcess", name, timeout=None)
        self._wait_stopped(name)

    def _ensure_started(self, name: str) -> bool:
        self._wait_stopped(name)
        # `wait_ready` explains why a program cannot be spawned.
        return self._rpc.call_tolerating({Fault.ALREADY_STARTED, Fault.SPAWN_ERROR}, "startProcess", name, False)

    def _wait_stopped(self, name: str) -> None:
        """Wait for the end of a program that another command, which may have been killed, began to stop."""
        # Without a limit: supervisord kills it after its `stop_seconds`.
        wait_until(lambda: self._rpc.states().get(name) != "STOPPING")


def given_up(files: SandboxFiles, statuses: Sequence[ProgramStatus]) -> list[str]:
    """Return the programs that should run and that the supervisor, by its `statuses`, does not restart any more."""
    ended = [each.name for each in statuses if each.state in GIVEN_UP]
    restarted = {program.name for program in loaded_programs(files) if program.restart} if ended else set()
    return [name for name in ended if name in restarted]
