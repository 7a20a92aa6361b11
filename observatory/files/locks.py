"""Advisory file locks between threads and processes.

A lock belongs to an open file and ends with the process that holds it, however that ends: no stale lock remains.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from observatory.errors import REFUSED, ObservatoryError

ATTEMPTS, PAUSE_S = 4, 0.05  # the process that holds the lock may be ending


class FileLockHeldError(ObservatoryError):
    """Another process holds a lock file; the message names the process."""

    exit_code = REFUSED


@contextmanager
def exclusive(path: Path) -> Iterator[int]:
    """Wait for the lock file `path`, hold it exclusively, and yield its descriptor.

    Missing parent directories are created. A child process that inherits the descriptor holds the lock until it ends.
    """
    with _opened(path) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor


@contextmanager
def exclusive_directory(path: Path) -> Iterator[None]:
    """Wait for the lock of an existing directory itself, and hold it exclusively; leaves no lock file behind."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def claim(path: Path) -> Iterator[int]:
    """Hold the lock file `path` exclusively, write this process' id into it, and yield its descriptor.

    Raises:
        FileLockHeldError: another process holds the lock.
    """
    with _opened(path) as descriptor:
        _try_exclusive(descriptor, path)
        add_holder(descriptor, os.getpid())
        os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR))  # afterwards: a full disk has no new block
        yield descriptor


def add_holder(descriptor: int, pid: int) -> None:
    """Write the id of another process that inherits the descriptor of a claimed lock into the lock file."""
    os.write(descriptor, f"{pid}\n".encode())


def holder(path: Path) -> int | None:
    """Return the id of the process that holds a claimed lock file, None if no process does.

    An id in the file counts only while its process has the file open: the kernel may have reused it.
    """
    try:
        pids, lock = path.read_text().split(), path.stat()
    except FileNotFoundError:
        return None
    return next((int(pid) for pid in pids if _has_open(int(pid), lock)), None)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_exclusive(descriptor: int, path: Path) -> None:
    from tenacity import (  # noqa: PLC0415 - only where a lock is claimed
        RetryError,
        Retrying,
        retry_if_exception_type,
        stop_after_attempt,
        wait_fixed,
    )

    attempts = Retrying(
        retry=retry_if_exception_type(BlockingIOError), stop=stop_after_attempt(ATTEMPTS), wait=wait_fixed(PAUSE_S)
    )
    try:
        attempts(fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except RetryError:
        raise FileLockHeldError(f"{path} is held by process {holder(path) or 'unknown'}") from None


def _has_open(pid: int, file: os.stat_result) -> bool:
    try:
        return any(_is(opened, file) for opened in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it has ended, or belongs to another user
        return False


def _is(path: Path, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), file)
    except OSError:  # closed meanwhile
        return False
