"""Ends the stacks of a test run that was interrupted or killed.

A run starts one reaper and names each checkout to it. The reaper waits for the end of its standard input, which comes
when the run ends, however it ends, and then kills the processes of every checkout that is left.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = ".observatory/stacks/local"  # of the stack, below a checkout
PAUSE_S = 0.05


def watch(root: Path) -> None:
    """Name a checkout to the reaper of this process."""
    stdin = _reaper().stdin
    assert stdin is not None
    stdin.write(f"{root}\n")
    stdin.flush()


@functools.cache
def _reaper() -> subprocess.Popen[str]:
    """Start the reaper in a session of its own, which the terminal's Ctrl-C does not reach."""
    reaper = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, text=True, start_new_session=True)
    atexit.register(reaper.communicate)  # closes its standard input and waits
    return reaper


def processes(root: Path) -> set[int]:
    """Return the processes that work in a checkout, or see the home of its stack as /srv."""
    return {int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _belongs(entry, root)} - {os.getpid()}


def kill_all(root: Path) -> None:
    """Kill every process of a checkout, as a power cut would."""
    while found := processes(root):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_S)


def _belongs(entry: Path, root: Path) -> bool:
    try:
        if Path(entry / "cwd").readlink().is_relative_to(root):
            return True
        home = root / HOME
        return home.exists() and os.path.samestat((entry / "root/srv").stat(), home.stat())
    except OSError:  # the process has ended, or is another user's
        return False


if __name__ == "__main__":
    for line in sys.stdin.read().splitlines():
        kill_all(Path(line))
