"""Advisory file locks between threads and processes.

A lock is an open file description: it ends with its holder, however that ends, so that nothing stale can remain.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from observatory.errors import REFUSED, ObservatoryError

ATTEMPTS, PAUSE_S = 4, 0.05


class FileLockHeldError(ObservatoryError):
    """Another process holds a lock file; the message names the process."""

    exit_code = REFUSED


@contextmanager
def exclusive(path: Path) -> Iterator[int]:
    """Hold the lock file `path` exclusively, waiting for it; yields its descriptor.

    A child process that inherits the descriptor keeps the lock until it ends too.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def claim(path: Path) -> Iterator[int]:
    """Hold the lock file `path` exclusively, which then names this process; yields its descriptor.

    Raises:
        FileLockHeldError: somebody holds it, and goes on doing so.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _try_exclusive(descriptor, path)
        os.ftruncate(descriptor, 0)
        add_holder(descriptor, os.getpid())
        yield descriptor
    finally:
        os.close(descriptor)


def add_holder(descriptor: int, pid: int) -> None:
    """Name another process, which inherits the descriptor of a claimed lock, as one that holds it."""
    os.write(descriptor, f"{pid}\n".encode())


def holder(path: Path) -> int | None:
    """Return the process that holds a claimed lock file, None if nobody does.

    A pid in the file counts only while its process has the file open: it may be another process's by now.
    """
    try:
        pids, lock = path.read_text().split(), path.stat()
    except FileNotFoundError:
        return None
    return next((int(pid) for pid in pids if _has_open(int(pid), lock)), None)


def _try_exclusive(descriptor: int, path: Path) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt == ATTEMPTS:
                raise FileLockHeldError(f"{path} is held by process {holder(path) or 'unknown'}") from None
            time.sleep(PAUSE_S)  # its holder may just be ending
        else:
            return


def _has_open(pid: int, file: os.stat_result) -> bool:
    try:
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it has ended, or is another user's
        return False
    return any(_is(descriptor, file) for descriptor in descriptors)


def _is(descriptor: Path, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(descriptor.stat(), file)
    except OSError:  # closed meanwhile
        return False
