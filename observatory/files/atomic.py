"""Writes files and directories completely or not at all, and removes incomplete ones of killed processes.

A file is written under a temporary name in the same directory, which contains the id of the writing process, and
renamed when it is complete. The next write into the directory removes temporary files of processes that no longer run,
also where another process has got the id since.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from observatory.files.ownership import Owner, change_owner
from observatory.files.reserve import FULL, with_reserve

PRIVATE = 0o600
CLOCK_S = 3600  # a clock that was put ahead by less makes no writer look younger than its file
# The answers of FAT, exFAT and of some network file systems to a hard link.
NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
_NAME = re.compile(r"\..+\.(\d+)-\d+\.partial")
_numbers = itertools.count()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an unused path beside `path`, for a file or a directory that then takes the place of `path`.

    The rename happens at the end of the block. A block that raises leaves `path` as it is and nothing beside it.

    Raises:
        OSError: the rename fails, for example because `path` is a directory that is not empty.
    """
    partial = partial_path(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        remove(partial)


def write_file(
    path: Path, content: str | bytes, *, mode: int = PRIVATE, owner: Owner | None = None, essential: bool = False
) -> bool:
    """Replace `path` by `content`, synced to disk, with this mode whatever the umask; return whether it changed.

    A link at `path` is replaced, not followed. An `essential` file, such as a document, is also written to a full disk:
    with the space of a reserve (`observatory.files.reserve`), and without one over the content of the old file.
    """
    data = content.encode() if isinstance(content, str) else content
    if _has(path, data, mode, owner):
        return False

    def replace() -> None:
        with replacing(path) as partial:
            _write(partial, data)
            partial.chmod(mode)
            change_owner(partial, owner)

    if not essential:
        replace()
        return True
    try:
        with_reserve(path, replace)
    except OSError as error:
        if error.errno not in FULL or not overwrite(path, data):
            raise
    return True


@contextmanager
def creating(path: Path, *, mode: int = PRIVATE) -> Iterator[BinaryIO]:
    """Yield a new file that gets the name `path` at the end of the block, synced to disk.

    A block that raises leaves nothing, and a killed process no file of that name; an empty one at most where the file
    system has no hard links.

    Raises:
        FileExistsError: there is a file or a link of that name, which stays.
        OSError: it cannot be written.
    """
    if path.is_symlink() or path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    partial = partial_path(path.absolute())
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _name(partial, path)
    finally:
        remove(partial)


def overwrite(path: Path, data: bytes) -> bool:
    """Write over the content of a regular file, which needs no space up to the size of its blocks; sync it to disk.

    A process that dies meanwhile leaves a mixture. Returns False where there is no such file or no space.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.lstat().st_nlink != 1:
            return False
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "wb", buffering=0) as file:
            done = file.write(data) == len(data)
            file.truncate()
            os.fsync(file.fileno())
            return done
    except OSError:
        return False


def write_once(path: Path, make_content: Callable[[], str]) -> bool:
    """Write what `make_content` returns to a private file, unless the file exists; return whether it was written.

    Of two processes that call this at once, one writes, and both find the same content afterwards. Missing parent
    directories are created with mode 0700.
    """
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = partial_path(path)
    try:
        _write(partial, make_content().encode())
        path.hardlink_to(partial)  # unlike a rename, a link never replaces the file of another process
    except FileExistsError:
        return False
    finally:
        remove(partial)
    return True


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """Yield an empty private directory beside `path`, for the parts of what is written there; removed at the end.

    Unlike a directory of `tempfile`, one that a signal or a kill leaves is known by its name: the next write into the
    parent removes it.
    """
    partial = partial_path(path)
    try:
        partial.mkdir(mode=0o700)
        yield partial
    finally:
        remove(partial)


def partial_path(path: Path) -> Path:
    """Return an unused name beside `path` for something incomplete, after `remove_abandoned` in that directory."""
    remove_abandoned(path.parent)
    return path.with_name(f".{path.name}.{os.getpid()}-{next(_numbers)}.partial")


def remove_abandoned(directory: Path) -> None:
    """Remove the incomplete files and directories in `directory` whose writers no longer run."""
    for path in abandoned(directory):
        remove(path)


def abandoned(directory: Path) -> list[Path]:
    """Return the incomplete files and directories in `directory` whose writers no longer run."""
    found = ((path, _NAME.fullmatch(path.name)) for path in directory.glob(".*.partial"))
    return [path for path, name in found if name and not _may_write(int(name[1]), path)]


def is_partial(path: Path) -> bool:
    """Return whether a path has a temporary name of this module."""
    return _NAME.fullmatch(path.name) is not None


def remove(path: Path) -> None:
    """Remove a file, a directory with its content, or a link; what does not exist counts as removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _name(partial: Path, path: Path) -> None:
    """Give a complete file its name.

    Raises:
        FileExistsError: there is a file of that name, which stays.
    """
    try:
        path.hardlink_to(partial)  # unlike a rename, a link never replaces the file of another process
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE))  # takes the name first
        partial.replace(path)


def _has(path: Path, data: bytes, mode: int, owner: Owner | None) -> bool:
    """Return whether a path is a regular file, not a link, with this content, mode and owner, that can be read."""
    try:
        status = path.lstat()
        declared = stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == mode
        return declared and (owner is None or owner.owns(status)) and path.read_bytes() == data
    except OSError:
        return False


def _may_write(pid: int, path: Path) -> bool:
    """Return whether a process may be the one that writes `path`; a later one that got its id is not."""
    import psutil  # noqa: PLC0415 - most directories have nothing incomplete

    if not psutil.pid_exists(pid):
        return False
    try:
        return bool(psutil.Process(pid).create_time() < path.lstat().st_mtime + CLOCK_S)
    except (OSError, psutil.Error):
        return True


def _write(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
