"""The user and group that files of the sandbox belong to, and work in directories that this user can change.

A command of root that follows a symbolic link of the daemons' user would write where only root may. The functions here
open each directory of a path in turn and follow no link.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

PRIVATE = 0o700
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True)
class Owner:
    """User and group of a file, by their ids."""

    uid: int
    gid: int

    def owns(self, status: os.stat_result) -> bool:
        """Return whether a file with this status belongs to the user and the group."""
        return (status.st_uid, status.st_gid) == (self.uid, self.gid)


def change_owner(path: Path, owner: Owner | None) -> None:
    """Change the owner of `path`, not of what is below it; None leaves it with the calling user."""
    if owner:
        os.chown(path, owner.uid, owner.gid, follow_symlinks=False)


def change_tree_owner(top: Path, owner: Owner | None) -> None:
    """Change the owner of a file, or of a directory and all that is below it, without following a link."""
    if not owner:
        return
    if top.is_dir() and not top.is_symlink():
        for _path, directories, files, descriptor in os.fwalk(top, topdown=False, onerror=_raise):
            for name in (*directories, *files):
                os.chown(name, owner.uid, owner.gid, dir_fd=descriptor, follow_symlinks=False)
    change_owner(top, owner)


@contextlib.contextmanager
def opened_beneath(
    top: Path, relative: PurePath, *, settle: Callable[[int, PurePath], None] | None = None
) -> Iterator[Path]:
    """Open the directory `relative` below `top`, and yield an alias of it that is valid until the end of the block.

    Args:
        top: a directory that only its owner can replace.
        relative: the path below it.
        settle: called with the descriptor and the path of each directory on the way. With it, missing directories are
            created, and symbolic links in their places are replaced. Without it, a link is an error.

    Raises:
        FileNotFoundError: without `settle`, a directory is missing.
        NotADirectoryError: a part of the path is another file or a link.
    """
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = PurePath()
        for name in relative.parts:
            path /= name
            if settle:
                _make(descriptor, name)
            inner = os.open(name, DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
            if settle:
                settle(descriptor, path)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _make(parent: int, name: str) -> None:
    """Create a private directory in an open one, unless there is one; a symbolic link is replaced."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, PRIVATE, dir_fd=parent)


def _raise(error: OSError) -> None:
    raise error
