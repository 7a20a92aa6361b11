"""The files of a sandbox: the directory that is /srv for the daemons, written from the host for their user.

Every write opens one directory after the other and follows no symbolic link: a daemon of root's sandbox, which can
replace the files in its own directories, cannot have root write elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO

from observatory.files import locks
from observatory.files.atomic import remove, write_file
from observatory.files.ownership import Owner, change_tree_owner, opened_beneath
from observatory.runtime import bubblewrap, mounts, sandbox_user
from observatory.runtime.errors import SandboxError
from observatory.runtime.home_owners import PRIVATE, give, no_owners, owner_at

INSIDE = PurePosixPath("/srv")
OTHERS_WRITE = 0o022  # mode bits with which other users can replace a directory's files
DIRECTORIES = ("etc", "etc/supervisor.d", "data", "run", "log", "releases", "lock")
READ = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
NOT_AS_MADE = {errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO}  # links, pipes and sockets in place of files
APPEND = READ | os.O_RDWR | os.O_APPEND | os.O_CREAT


@dataclass(frozen=True)
class SandboxFiles:
    """The directory `home` of the host, for daemons whose programs are in `rootfs`."""

    home: Path
    rootfs: Path

    def host_path(self, inside: str | PurePosixPath) -> Path:
        """Return the host's path of `inside`, a path below /srv or in a directory that is mounted from outside."""
        path = PurePosixPath(inside)
        if not path.is_relative_to(INSIDE) and (outside := mounts.located(self.home, path)):
            return outside[0] / outside[1]
        return self.home / _relative(path)

    def inside_path(self, host: Path) -> PurePosixPath:
        """Return the path below /srv of `host`, a path below the home."""
        return INSIDE / host.resolve().relative_to(self.home.resolve())

    def write_file(self, inside: str, content: str | bytes, *, mode: int = 0o600, essential: bool = False) -> bool:
        """Write a file below /srv, atomically and owned by the daemons' user; return whether anything changed.

        An `essential` file is also written to a full disk, if a reserve is left.
        """
        with self._opened(PurePosixPath(inside).parent) as directory:
            path = directory / PurePosixPath(inside).name
            if path.is_dir() and not path.is_symlink():
                remove(path)  # a rename does not replace a directory
            owner = self.owner_of(inside)
            if owner and path.is_file() and not owner.owns(path.lstat()):
                remove(path)  # otherwise a file with this content would keep its owner
            return write_file(path, content, mode=mode, owner=owner, essential=essential)

    def owner_of(self, inside: str) -> Owner | None:
        """Return the owner of a file below /srv; None: the calling user."""
        return self._owners(directory=False)(_relative(inside))

    def remove_file(self, inside: str) -> None:
        """Remove a file or a directory below /srv, if it exists; a link itself, not what it points to."""
        walked = self._walked(_relative(inside).parent, create=False)
        with contextlib.suppress(FileNotFoundError), walked as directory:
            remove(directory / PurePosixPath(inside).name)

    def make_directory(self, inside: str) -> None:
        """Create a directory below /srv and its parents, private to the daemons' user.

        A link in the place of a directory is replaced: it may point outside of the home.
        """
        with self._opened(PurePosixPath(inside)):
            pass

    def open_append(self, inside: str) -> BinaryIO:
        """Open a file to read and to append, created where missing and owned by the daemons' user.

        Args:
            inside: a path below /srv or in a directory that is mounted from outside.

        Raises:
            SandboxError: it is no regular file, or has a further name.
        """
        if outside := mounts.located(self.home, PurePosixPath(inside)):
            place = self._walked(outside[1].parent, top=outside[0])
            owner = sandbox_user.recorded(self.home)
        else:
            place, owner = self._opened(PurePosixPath(inside).parent), self._owners(directory=False)(_relative(inside))
        with place as directory:
            file = self._open(directory, inside, APPEND)
        if owner:
            give(file.fileno(), owner)
        return file

    def overwrite(self, inside: str, content: str) -> None:
        """Write to an existing file below /srv in place: on a full disk there is no space for another one.

        Raises:
            FileNotFoundError: it does not exist.
            SandboxError: it is no regular file, or has a further name.
        """
        with self._walked(_relative(inside).parent, create=False) as directory:
            file = self._open(directory, inside, READ | os.O_RDWR)
        with file:
            os.pwrite(file.fileno(), content.encode(), 0)
            os.ftruncate(file.fileno(), len(content.encode()))

    def open_read(self, inside: str) -> BinaryIO:
        """Open a file below /srv to read.

        Raises:
            FileNotFoundError: it does not exist.
            SandboxError: it is no regular file, or has a further name.
        """
        with self._walked(_relative(inside).parent, create=False) as directory:
            return self._open(directory, inside, READ)

    def adopt(self, inside: str) -> None:
        """Make the daemons' user the owner of a whole tree below /srv, such as an unpacked release."""
        with self._opened(PurePosixPath(inside).parent) as directory:
            change_tree_owner(directory / PurePosixPath(inside).name, self.entry.owner)

    def lock(self, name: str) -> AbstractContextManager[int]:
        """Return the lock `name` of this sandbox, which excludes other threads and processes."""
        self.make_home()
        return locks.exclusive(self.home / "lock" / f"{name}.lock")

    @property
    def entry(self) -> bubblewrap.Entry:
        """The way into the root filesystem on this machine."""
        if former := self.former_owner:
            return bubblewrap.former_entry(self.rootfs, former if former.uid else None)
        return bubblewrap.entry(self.rootfs, self.home)

    @property
    def former_owner(self) -> Owner | None:
        """The owner of the data of a sandbox that release 0.1.0 made as root; None of any other sandbox.

        Raises:
            SandboxError: the sandbox belongs to another user.
        """
        if sandbox_user.recorded(self.home) or not sandbox_user.needed():
            return None
        try:
            data, above = (self.home / "data").stat(), self.home.parent.stat()
        except FileNotFoundError:
            return None
        if above.st_uid == data.st_uid != os.geteuid():
            raise SandboxError(
                f"{self.home} belongs to the user {data.st_uid}, and its daemons run as that user",
                remedy="Run the command as that user, not as root.",
            )
        return Owner(uid=data.st_uid, gid=data.st_gid)

    def make_home(self) -> None:
        """Create the home and the directories that every sandbox has, for the daemons' user."""
        user = sandbox_user.recorded(self.home)
        if self._is_complete(user):
            return
        self.home.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        if user is None and self.former_owner is None and sandbox_user.needed():
            user = sandbox_user.record(self.home, sandbox_user.draw())
        if user:
            try:
                give(str(self.home), owner_at(PurePath(), user, directory=True))
            except PermissionError as error:
                raise no_owners(self.home, error) from error
        for name in DIRECTORIES:
            with self._walked(PurePath(name)):
                pass

    def _owners(self, *, directory: bool) -> Callable[[PurePath], Owner | None]:
        """Return the owner of files, or of directories, by their path below the home; None: the calling user."""
        if user := sandbox_user.recorded(self.home):
            return lambda relative: owner_at(relative, user, directory=directory)
        former = self.former_owner
        return lambda _relative: former

    def _is_complete(self, user: Owner | None) -> bool:
        made = all((self.home / name).is_dir() for name in DIRECTORIES)
        return made and (user is None or self.home.stat().st_gid == user.gid)

    @contextlib.contextmanager
    def _opened(self, inside: PurePosixPath) -> Iterator[Path]:
        """Open a directory below /srv, created where it is missing, and yield an alias of it."""
        self.make_home()
        with self._walked(_relative(inside)) as directory:
            yield directory

    @contextlib.contextmanager
    def _walked(self, relative: PurePath, *, create: bool = True, top: Path | None = None) -> Iterator[Path]:
        """Open a directory below the home, or below `top`, which is outside of it and all the daemons' user's."""
        user = sandbox_user.recorded(self.home)
        owner_of = (lambda _path: user) if top else self._owners(directory=True)

        def settle(descriptor: int, path: PurePath) -> None:
            status = os.fstat(descriptor)
            if status.st_mode & OTHERS_WRITE:
                os.fchmod(descriptor, PRIVATE)
            if owner := owner_of(path):
                give(descriptor, owner)

        with contextlib.ExitStack() as opened:
            try:
                walk = opened_beneath(top or self.home, relative, settle=settle if create else None)
                directory = opened.enter_context(walk)
            except OSError as error:
                raise self._explained(error, (top or self.home) / relative) from None
            yield directory

    def _open(self, directory: Path, inside: str, flags: int) -> BinaryIO:
        try:
            descriptor = os.open(directory / PurePosixPath(inside).name, flags, 0o600)
        except OSError as error:
            raise self._explained(error, self.host_path(inside)) from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(descriptor)
            raise _unexpected(self.host_path(inside), "it is no regular file with a single name")
        return os.fdopen(descriptor, "a+b" if flags & os.O_APPEND else "rb")

    @staticmethod
    def _explained(error: OSError, path: Path) -> Exception:
        return _unexpected(path, str(error.strerror)) if error.errno in NOT_AS_MADE else error


def _unexpected(path: Path, reason: str) -> SandboxError:
    return SandboxError(
        f"{path} cannot be used: {reason}. In the home of a stack, directories and files are no"
        " links and belong to the daemons",
        remedy=f"See ls -ld {path} and the directories above it.",
    )


def _relative(inside: str | PurePosixPath) -> PurePosixPath:
    """Return a path below /srv as a path below the home."""
    return PurePosixPath(inside).relative_to(INSIDE)
