"""Child processes that do not outlive the code that waits for them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from observatory.interruption.parallel import ended_by


@contextlib.contextmanager
def process_group(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: int = subprocess.DEVNULL,
    stderr: int = subprocess.PIPE,
    pass_fds: Sequence[int] = (),
    umask: int = -1,
) -> Iterator[subprocess.Popen[str]]:
    """Run `command` as a process group; an exception in the context, such as an interrupt, kills the whole group.

    So does the end of the work of this thread: see `observatory.interruption.parallel`.
    """
    with subprocess.Popen(
        command,
        env=env,
        pass_fds=pass_fds,
        start_new_session=True,
        umask=umask,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        errors="replace",
    ) as process:
        try:
            with ended_by(partial(_kill, process.pid)):
                yield process
        except BaseException:
            _kill(process.pid)
            process.communicate()  # returns when the last of them has closed its output
            raise


def handles(pid: int, number: signal.Signals) -> bool:
    """Return whether a process handles a signal, which ends one that has just started and does not yet."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:  # it has ended
        return False
    handled = next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1]  # proc_pid_status(5)
    return bool(int(handled, 16) >> (number - 1) & 1)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
