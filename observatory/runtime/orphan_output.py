"""Reads the output of daemons whose supervisor has died, until they have ended.

Their standard output is a pipe that the supervisor read. Without a reader, Go's runtime ends a daemon that writes, and
PostgreSQL's `archive_command` fails, whose retries delay the shutdown by three seconds. The kernel opens the other end
of a pipe again through /proc.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from observatory.runtime.errors import SandboxError
from observatory.runtime.sandbox_files import SandboxFiles

CHUNK_BYTES, PAUSE_S = 65_536, 0.2


@contextlib.contextmanager
def collecting_output(files: SandboxFiles, logs: Mapping[int, str]) -> Iterator[None]:
    """Append what the processes, by pid, write to their log files below /srv, until the end of the block."""
    ended = threading.Event()
    with selectors.DefaultSelector() as selector:
        for pid, log in logs.items():
            if (descriptor := _open(pid)) is not None:
                selector.register(descriptor, selectors.EVENT_READ, log)
        thread = threading.Thread(target=_copy, args=(selector, files, ended), name="orphan-output", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            for key in list(selector.get_map().values()):
                os.close(key.fd)


def _open(pid: int) -> int | None:
    """Return a reading end of the pipe that is the standard output of a process; None if it is no pipe."""
    output = Path(f"/proc/{pid}/fd/1")
    try:
        if stat.S_ISFIFO(output.stat().st_mode):
            return os.open(output, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # it has ended
        pass
    return None


def _copy(selector: selectors.BaseSelector, files: SandboxFiles, ended: threading.Event) -> None:
    while selector.get_map():
        last = ended.is_set()
        ready = selector.select(0 if last else PAUSE_S)
        for key, _ in ready:
            if not _copied(key.fd, files, key.data):
                selector.unregister(key.fd)
                os.close(key.fd)
        if last and not ready:
            return


def _copied(descriptor: int, files: SandboxFiles, log: str) -> bool:
    """Copy what is in the pipe; return False at its end."""
    try:
        content = os.read(descriptor, CHUNK_BYTES)
    except BlockingIOError:
        return True
    if content:
        with contextlib.suppress(OSError, SandboxError), files.open_append(log) as file:  # the disk may be full
            file.write(content)
    return bool(content)
