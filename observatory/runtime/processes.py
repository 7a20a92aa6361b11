"""Child processes that do not outlive the code that waits for them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence


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
    """Run `command` as a process group; an exception in the context, such as an interrupt, kills the whole group."""
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
            yield process
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()  # returns when the last of them has closed its output
            raise
