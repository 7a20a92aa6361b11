"""Runs the Pulumi CLI as a child process that signals stop as they stop the embedded engine.

No process of the CLI is left at its end, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from types import FrameType

import psutil
from pulumi.automation import CommandResult, OnOutput, PulumiCommand
from pulumi.automation.errors import create_command_error
from tenacity import RetryCallState, Retrying, retry_if_result, stop_after_delay, wait_fixed

from observatory.engines.embedded import Interrupted
from observatory.interruption import handle_stop_signals

_PAUSE_S = 0.01
_END_TIMEOUT_S = 5.0  # a killed process ends at once, unless it is blocked in the kernel


class SessionCommand(PulumiCommand):
    """Runs each CLI in a session of its own. The CLI's plugins are in that session, each in its own process group.

    Ctrl-C in the terminal therefore reaches this process alone, which interrupts the CLI.
    """

    def __init__(self) -> None:
        super().__init__()
        self._process: subprocess.Popen[str] | None = None
        self._stopped_by: signal.Signals | None = None
        self._is_interrupted = False

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """On a stop signal, let the CLI finish its steps in flight; on a second SIGINT, let it abort them."""
        with handle_stop_signals(self._stop):
            yield

    def run(
        self,
        args: list[str],
        cwd: str,
        additional_env: Mapping[str, str],
        on_output: OnOutput | None = None,  # noqa: ARG002 - callers use the events
        on_error: OnOutput | None = None,  # noqa: ARG002
    ) -> CommandResult:
        """Run the CLI to its end, and then end the processes that it left.

        Raises:
            Interrupted: a signal stopped it.
            pulumi.automation.errors.CommandError: it failed.
        """
        self._check_stopped()
        self._process = subprocess.Popen(
            [*_kill_with_parent(), self.command, "--non-interactive", *args],
            cwd=cwd,
            env={**os.environ, **additional_env, "PULUMI_AUTOMATION_API": "true"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )
        try:
            if self._stopped_by and not self._is_interrupted:
                self._interrupt(self._process)
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
        if self._process and (number == signal.SIGINT or not self._is_interrupted):
            self._interrupt(self._process)

    def _interrupt(self, process: subprocess.Popen[str]) -> None:
        """Interrupt the CLI: it finishes its steps in flight the first time, and ends at once the second time."""
        self._is_interrupted = True
        process.send_signal(signal.SIGINT)

    def _check_stopped(self) -> None:
        if self._stopped_by:
            raise Interrupted(f"interrupted by {self._stopped_by.name}; the steps in flight were finished and saved")


def end_session(leader: int) -> None:
    """Kill every process of the session that `leader` began, and wait until they have ended.

    The kernel does not reuse the session's number while it has a process.
    """
    retrying = Retrying(
        retry=retry_if_result(bool),
        wait=wait_fixed(_PAUSE_S),
        stop=stop_after_delay(_END_TIMEOUT_S),
        retry_error_callback=_ignore,
    )
    retrying(_kill_members, leader)


def end_orphans(leader: int) -> None:
    """Kill what is left of a dead leader's session. If the leader's number is in use, another process has it now."""
    if leader not in [process.pid for process in _members(leader)]:
        end_session(leader)


def _kill_members(leader: int) -> list[psutil.Process]:
    """Kill the session's processes, and return those that were left."""
    members = _members(leader)
    for process in members:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return members


def _members(leader: int) -> list[psutil.Process]:
    """Return a session's processes without the zombies."""
    members = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def _ignore(_: RetryCallState) -> None:
    """Return although processes are left: the next run tries again."""


def _kill_with_parent() -> tuple[str, ...]:
    """Return the command prefix that kills the CLI when this process dies; otherwise it would keep the stack's lock."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()
