"""Disk space that is held back in a file, and released when the disk is full.

Two files hold space. The one in a stack's home is released when little space is left, so that the database can continue
and recover. The one in the checkout's state directory is released by a write that finds the disk full, so that a
document, such as the rollout, is still written. A reserve is filled again when there is room.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

NAME = "disk-reserve"
SHARE = 0.05  # of its filesystem that a reserve takes at most
LOW = 0.25  # of a reserve's size: released when less is available
ROOM = 3  # times its size must be available before it is filled, so that it is not released at once
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Reserve:
    """The reserve in `directory`, of `size` bytes or `SHARE` of a small filesystem."""

    directory: Path
    size: int

    @property
    def path(self) -> Path:
        """The file that holds the space."""
        return self.directory / NAME

    def held(self) -> int:
        """Return the bytes that are held back now."""
        try:
            return self.path.stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def keep(self) -> bool:
        """Fill the reserve where it is missing and there is room; return whether it was filled now."""
        size, available = self._space()
        if self.held() >= size or available < ROOM * size:
            return False
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            self.release()
            if error.errno not in FULL:
                raise
            return False
        finally:
            os.close(descriptor)
        return True

    def is_low(self) -> bool:
        """Return whether so little space is left that the reserve is needed."""
        size, available = self._space()
        return available < LOW * size

    def release(self) -> bool:
        """Return the space to the filesystem; return whether any was held."""
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        return True

    def _space(self) -> tuple[int, int]:
        """Return the size of the reserve on its filesystem, and the available bytes there."""
        found = os.statvfs(self.directory)
        return min(self.size, int(found.f_blocks * found.f_frsize * SHARE)), found.f_bavail * found.f_frsize


def with_reserve(path: Path, write: Callable[[], T]) -> T:
    """Return the result of `write`, which writes the file `path` and may be repeated.

    If the disk is full, the nearest reserve above `path` on its filesystem is released and `write` is called again.
    """
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in FULL or not _release_nearest(path):
                raise


def _release_nearest(path: Path) -> bool:
    directory = path.parent.resolve()  # which may be named by a descriptor
    device = directory.stat().st_dev
    reserves = (Reserve(directory=parent, size=0) for parent in (directory, *directory.parents))
    return any(each.release() for each in reserves if _on(each.path, device))


def _on(path: Path, device: int) -> bool:
    try:
        return path.lstat().st_dev == device
    except OSError:
        return False
