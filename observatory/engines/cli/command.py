"""The Pulumi CLI as a child process that is stopped as the embedded engine is, and leaves nothing running.

Owns the child's session, the signals forwarded to it and what is left of it. What it is told to do, and what its events
mean, is `observatory.engines.cli.automation`'s.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

from pulumi.automation import CommandResult, OnOutput, PulumiCommand
from pulumi.automation.errors import create_command_error

from observatory.engines.embedded import Interrupted
from observatory.interruption import handle_stop_signals

_END_TIMEOUT_S = 5.0  # a killed process is gone at once, unless the kernel holds it


class SessionCommand(PulumiCommand):
    """Runs each CLI in a session of its own, which the CLI's plugins share, although each has its own process group.

    The terminal's Ctrl-C therefore reaches nothing but this process, which decides what the CLI is told.
    """

    def __init__(self) -> None:
        super().__init__()
        self._process: subprocess.Popen[str] | None = None
        self._stopped_by: signal.Signals | None = None
        self._is_told = False

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """On a signal that stops, let the CLI end its steps in flight; on a second SIGINT, it breaks off."""
        with handle_stop_signals(self._stop):
            yield

    def run(
        self,
        args: list[str],
        cwd: str,
        additional_env: Mapping[str, str],
        on_output: OnOutput | None = None,  # noqa: ARG002 - callers here follow the events
        on_error: OnOutput | None = None,  # noqa: ARG002
    ) -> CommandResult:
        """Run the CLI to its end, and then end what it left running.

        Raises:
            Interrupted: it was stopped by a signal.
            pulumi.automation.errors.CommandError: it failed.
        """
        self._check_stopped()
        self._process = subprocess.Popen(
            [*_dying_with_parent(), self.command, "--non-interactive", *args],
            cwd=cwd,
            env={**os.environ, **additional_env, "PULUMI_AUTOMATION_API": "true"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )
        try:
            if self._stopped_by and not self._is_told:
                self._tell(self._process)
            out, err = self._process.communicate()
        finally:
            end_session(self._process.pid)
        self._check_stopped()
        result = CommandResult(stdout=out.rstrip(), stderr=err.rstrip(), code=self._process.returncode)
        if result.code:
            raise create_command_error(result)
        return result

    def _stop(self, number: int, _: FrameType | None) -> None:
        self._stopped_by = self._stopped_by or signal.Signals(number)
        if self._process and (number == signal.SIGINT or not self._is_told):
            self._tell(self._process)

    def _tell(self, process: subprocess.Popen[str]) -> None:
        """Interrupt the CLI: the first time it ends its steps in flight, the second time it ends at once."""
        self._is_told = True
        process.send_signal(signal.SIGINT)

    def _check_stopped(self) -> None:
        if self._stopped_by:
            raise Interrupted(f"interrupted by {self._stopped_by.name}; what was begun is done and saved")


def end_session(leader: int) -> None:
    """Kill every process of the session that `leader` began; its number is not given away while one is left."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    while (members := _members(leader)) and time.monotonic() < deadline:
        for pid in members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def end_orphans(leader: int) -> None:
    """Kill what is left of a dead leader's session; where the leader lives, the number is somebody else's by now."""
    if leader not in _members(leader):
        end_session(leader)


def _members(leader: int) -> list[int]:
    """Return a session's processes, but for those that only wait to be reaped (proc_pid_stat(5): state, session)."""
    members = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                members.append(int(entry.name))
    return members


def _dying_with_parent() -> tuple[str, ...]:
    """Return what makes the CLI die with this process: alone it would hold the lock for a run that nobody follows."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()
