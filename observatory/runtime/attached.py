"""Runs a command on this process's standard streams, but not on its terminal.

A process that has a terminal can put characters into its input (TIOCSTI), which the shell would run after the command
has ended. So the command gets a session of its own: with a terminal of its own where this process has one, and without
any otherwise.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

CHUNK = 65_536


def run_attached(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a command until it ends, and return its exit status.

    Args:
        command: to run.
        env: its whole environment.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return subprocess.run(command, env=env, check=False, start_new_session=True).returncode
    leader, follower = os.openpty()
    try:
        with _sized(leader), _raw(sys.stdin.fileno()):
            process = subprocess.Popen(
                command,
                env=env,
                stdin=follower,
                stdout=follower,
                stderr=follower,
                start_new_session=True,
                preexec_fn=_take_terminal,  # noqa: PLW1509 - one system call
            )
            os.close(follower)
            _copy(leader)
            return process.wait()
    finally:
        os.close(leader)


def _take_terminal() -> None:
    """Make standard input the terminal of this new session, for Ctrl-C and job control."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """Pass every key to the command during the block, also Ctrl-C."""
    before = termios.tcgetattr(terminal)
    tty.setraw(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextmanager
def _sized(leader: int) -> Iterator[None]:
    """Give the command's terminal the size of this one, now and whenever it changes during the block."""

    def resize(_number: int = 0, _frame: FrameType | None = None) -> None:
        termios.tcsetwinsize(leader, termios.tcgetwinsize(sys.stdin.fileno()))

    before = signal.signal(signal.SIGWINCH, resize)
    resize()
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def _copy(leader: int) -> None:
    """Copy keys to the command and its output to the terminal, until the command has closed its own."""
    sources = [leader, sys.stdin.fileno()]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if leader in ready:
            if not (output := _read(leader)):
                return
            _write(sys.stdout.fileno(), output)
        if sys.stdin.fileno() in ready:
            if keys := os.read(sys.stdin.fileno(), CHUNK):
                _write(leader, keys)
            else:
                sources.remove(sys.stdin.fileno())


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, CHUNK)
    except OSError as error:
        if error.errno == errno.EIO:  # Linux: every process of the command has closed the terminal
            return b""
        raise


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]
