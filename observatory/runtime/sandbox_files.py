"""The files of a sandbox: the directory that is /srv for the daemons, written from the host for their user."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from observatory.files import locks
from observatory.files.atomic import remove, write_file
from observatory.files.ownership import change_owner
from observatory.runtime import bubblewrap

INSIDE = PurePosixPath("/srv")
OTHERS_WRITE = 0o022  # mode bits with which other users can replace a directory's files
DIRECTORIES = ("etc", "etc/supervisor.d", "data", "run", "log", "releases", "lock")


@dataclass(frozen=True)
class SandboxFiles:
    """The directory `home` of the host, for daemons whose programs are in `rootfs`."""

    home: Path
    rootfs: Path

    def host_path(self, inside: str | PurePosixPath) -> Path:
        """Return the host's path of `inside`, a path below /srv."""
        return self.home / PurePosixPath(inside).relative_to(INSIDE)

    def inside_path(self, host: Path) -> PurePosixPath:
        """Return the path below /srv of `host`, a path below the home."""
        return INSIDE / host.resolve().relative_to(self.home.resolve())

    def write_file(self, inside: str, content: str | bytes, *, mode: int = 0o600) -> bool:
        """Write a file below /srv, atomically and owned by the daemons' user; return whether anything changed."""
        self.make_directory(str(PurePosixPath(inside).parent))
        if self.host_path(inside).is_dir():
            self.remove_file(inside)  # a rename does not replace a directory
        return write_file(self.host_path(inside), content, mode=mode, owner=self.entry.owner)

    def remove_file(self, inside: str) -> None:
        """Remove a file or a directory below /srv, if it exists; a link itself, not what it points to."""
        remove(self.host_path(inside))

    def make_directory(self, inside: str) -> None:
        """Create a directory below /srv and its parents, private to the daemons' user.

        A link in the place of a directory is replaced: it may point outside of the home.
        """
        self.make_home()
        path = self.host_path(inside)
        for part in (*reversed(path.relative_to(self.home).parents), path.relative_to(self.home)):
            directory = self.home / part
            if directory.is_symlink() and directory != self.home:
                directory.unlink()
            directory.mkdir(mode=0o700, exist_ok=True)
            if directory.stat().st_mode & OTHERS_WRITE:
                directory.chmod(0o700)
            change_owner(directory, self.entry.owner)

    def adopt(self, inside: str) -> None:
        """Make the daemons' user the owner of a whole tree below /srv, such as an unpacked release."""
        top = self.host_path(inside)
        for path in (top, *top.rglob("*")):
            change_owner(path, self.entry.owner)

    def lock(self, name: str) -> AbstractContextManager[int]:
        """Return the lock `name` of this sandbox, which excludes other threads and processes."""
        self.make_home()
        return locks.exclusive(self.home / "lock" / f"{name}.lock")

    @property
    def entry(self) -> bubblewrap.Entry:
        """The way into the root filesystem on this machine."""
        return bubblewrap.entry(self.rootfs)

    def make_home(self) -> None:
        """Create the home and the directories that every sandbox has, for the daemons' user."""
        for directory in (self.home, *(self.home / name for name in DIRECTORIES)):
            if not directory.is_dir():
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                change_owner(directory, self.entry.owner)
