"""Which user the files in the home of root's sandbox belong to, and the change of a home that release 0.1.0 made.

The daemons' user owns `data`, `run`, `log` with all that is in them, every configuration file and every unpacked
release. The directories around them belong to root, so that a daemon can neither replace nor add a file there. `lock`
and the files directly in the home are root's alone.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from observatory.files.ownership import Owner
from observatory.runtime import sandbox_user
from observatory.runtime.errors import SandboxError

WRITABLE = frozenset({"data", "run", "log"})
RELEASE_DEPTH = 3  # releases/<fleet>/<version>
PRIVATE, SHARED = 0o700, 0o750
SHOWN = 5


def owner_at(relative: PurePath, user: Owner, *, directory: bool) -> Owner:
    """Return the owner of a file or directory at a path below the home."""
    parts = relative.parts
    root = Owner(uid=os.geteuid(), gid=os.getegid())
    if not parts or parts[0] in WRITABLE or (parts[0] == "releases" and len(parts) >= RELEASE_DEPTH):
        return user if parts else Owner(uid=root.uid, gid=user.gid)
    if parts[0] == "lock" or (len(parts) == 1 and not directory):
        return root
    return Owner(uid=root.uid, gid=user.gid) if directory else user


def adopt(directory: Path) -> None:
    """Give a new directory of root's to an unassigned user, who may write to its subdirectories.

    A sandbox over the directory runs as that user. Nothing changes for another user.
    """
    if not sandbox_user.needed():
        return
    inside = [path for path in directory.iterdir() if path.is_dir()]
    user = sandbox_user.record(directory, sandbox_user.draw())
    give(str(directory), owner_at(PurePath(), user, directory=True))
    for path in inside:
        give(str(path), user)


def give(file: str | int, owner: Owner, *, parent: int | None = None) -> None:
    """Change the owner of a file where it differs; a directory that root shares with the daemons gets its mode.

    Args:
        file: its name in the directory `parent`, where a symbolic link is not followed; or an open file.
        owner: the new one.
        parent: an open directory; None for a path that only root can change.
    """
    follow = isinstance(file, int)
    status = os.stat(file, dir_fd=parent, follow_symlinks=follow)
    if not owner.owns(status):
        os.chown(file, owner.uid, owner.gid, dir_fd=parent, follow_symlinks=follow)
    shared = stat.S_ISDIR(status.st_mode) and owner.uid == os.geteuid() and owner.gid != os.getegid()
    if shared and stat.S_IMODE(status.st_mode) != SHARED:
        os.chmod(file, SHARED, dir_fd=parent)


def check_links(home: Path) -> None:
    """Check that no file of the home has a further name outside of it, whose owner would change too.

    Raises:
        SandboxError: some have; the message names them.
    """
    if shared := sorted(_names_elsewhere(home)):
        shown = "\n".join(f"  {path}" for path in shared[:SHOWN])
        raise SandboxError(
            f"the files of {home} change their owner once, and {len(shared)} of them are hard links to files outside"
            f" of it, whose owner would change too:\n{shown}",
            remedy="Replace each by a copy (cp -p FILE FILE.copy && mv FILE.copy FILE), then run `observatory up`.",
        )


def change_user(home: Path, user: Owner) -> None:
    """Make `user` the user of a stopped sandbox that release 0.1.0 made.

    A killed call leaves a home without a record of its user, which the next call changes again.

    Raises:
        SandboxError: the file system has no owners.
    """
    try:
        for path, directories, files, descriptor in os.fwalk(home, topdown=False, onerror=_raise):
            above = PurePath(path).relative_to(home)
            for name in (*directories, *files):
                give(name, owner_at(above / name, user, directory=name in directories), parent=descriptor)
        give(str(home), owner_at(PurePath(), user, directory=True))
    except PermissionError as error:
        raise no_owners(home, error) from error
    sandbox_user.record(home, user)


def no_owners(home: Path, error: OSError) -> SandboxError:
    """Return the error of a file system on which files cannot be given to another user."""
    return SandboxError(
        f"the files of {home} cannot be given to the daemons' user: {error.strerror}",
        remedy="Use a checkout on a local file system such as ext4 or xfs, or run the command as an ordinary user.",
    )


def _names_elsewhere(home: Path) -> Iterator[Path]:
    """Yield the regular files that have more names than the home contains."""
    found: Counter[tuple[int, int]] = Counter()
    linked: dict[tuple[int, int], tuple[int, Path]] = {}
    for path, _directories, files, descriptor in os.fwalk(home, onerror=_raise):
        for name in files:
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if status.st_nlink > 1:
                file = (status.st_dev, status.st_ino)
                found[file] += 1
                linked[file] = (status.st_nlink, Path(path, name))
    yield from (path for file, (links, path) in linked.items() if found[file] < links)


def _raise(error: OSError) -> None:
    raise error
