"""The directories of backup repositories outside of a local stack's home: whether they fit, and their use.

A directory has a mark with the home of its stack. A directory that has lost its mark is that of a disk which is not
mounted. No content is moved or removed here: a setting that would leave a repository behind is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import stat
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from observatory.backups.pgbackrest import has_backups
from observatory.backups.tool import BackupError
from observatory.errors import REFUSED
from observatory.files.atomic import is_partial, write_file
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import REPOSITORIES, cipher_file, outside_repository, repository, settings_file
from observatory.nodes.programs.backup_repository import Node, nodes_of, read_stanza
from observatory.runtime import Sandbox, bubblewrap, mounts, sandbox_user
from observatory.runtime.home_owners import give
from observatory.runtime.sandbox import ENVIRONMENT

MARK = ".observatory-repository"
OWN = frozenset({"archive", "backup", "audit", MARK})
TOLERATED = frozenset({"lost+found"})  # of a file system's top directory
PRIVATE = 0o700
MARK_BYTES = 4096
SHOWN = 3
SETTING = "backups.repositories[{index}].path"


class RepositoryPlaceError(BackupError):
    """The directory of a backup repository cannot be used; nothing was changed."""

    exit_code = REFUSED


def check_places(sandbox: Sandbox, wanted: Mapping[int, Path]) -> None:
    """Check that the repositories can be where the settings have them.

    Args:
        sandbox: of the stack, whose home may not exist yet.
        wanted: the directories outside of the home, by the number of the repository; the others are in the home.

    Raises:
        RepositoryPlaceError: a directory is absent or another's, or a repository would be left behind.
    """
    known = mounts.recorded(sandbox.home)
    for number in REPOSITORIES:
        old, new = known.get(outside_repository(number)), wanted.get(number)
        if new:
            _check_directory(sandbox, number, new)
        if old and new and new.resolve() == old:
            _check_mounted(number, old)
        elif old or new:
            inside = sandbox.host_path(repository(Paths(), number))
            _check_move(sandbox, number, old or inside, new.resolve() if new else inside)


def place_of(sandbox: Sandbox, number: int) -> str:
    """Return the directory of a repository as the stack's daemons see it."""
    outside = outside_repository(number)
    return outside if outside in mounts.recorded(sandbox.home) else repository(Paths(), number)


def is_there(sandbox: Sandbox, number: int) -> bool:
    """Return whether the directory of a repository exists; not without its disk."""
    outside = mounts.recorded(sandbox.home).get(outside_repository(number))
    if outside:
        return _mark_in(outside) is not None
    return sandbox.host_path(repository(Paths(), number)).is_dir()


def use_places(sandbox: Sandbox, wanted: Mapping[int, Path]) -> None:
    """Give the directories to the daemons, mark them, and record them for the next start of the sandbox.

    Raises:
        OSError: a directory cannot be written to.
    """
    if not wanted and not mounts.recorded(sandbox.home):
        return
    sandbox.make_home()
    for number, path in wanted.items():
        descriptor = os.open(path.resolve(), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _take(sandbox, descriptor, number)
        finally:
            os.close(descriptor)
    if wanted:
        places = {outside_repository(number): path.resolve() for number, path in wanted.items()}
        sandbox.write_file(mounts.RECORD, mounts.record(places))
    else:
        sandbox.remove_file(mounts.RECORD)


def _take(sandbox: Sandbox, directory: int, number: int) -> None:
    if owner := sandbox_user.recorded(sandbox.home):
        give(directory, owner)
    if stat.S_IMODE(os.fstat(directory).st_mode) != PRIVATE:
        os.fchmod(directory, PRIVATE)
    if _mark(directory) is None:  # a later `up` writes nothing: the disk may be full
        content = json.dumps({"home": str(sandbox.home.resolve()), "repository": number}) + "\n"
        write_file(Path(f"/proc/self/fd/{directory}/{MARK}"), content)


def _check_directory(sandbox: Sandbox, number: int, path: Path) -> None:
    """Check what holds for the directory of every repository, also of one in use."""
    place = f"the directory {path} of backup repository {number} ({SETTING.format(index=number - 1)})"
    if not path.is_dir():
        raise RepositoryPlaceError(
            f"{place} does not exist" if not path.exists() else f"{place} is no directory",
            remedy=f"Mount its disk, or create an empty directory: mkdir -m 700 {path}. Nothing was changed.",
        )
    home, found = sandbox.home.resolve(), path.resolve()
    if found.is_relative_to(home) or home.is_relative_to(found):
        raise RepositoryPlaceError(
            f"{place} is not outside of the stack's home {home}", remedy="Name a directory elsewhere."
        )
    status = found.stat()
    if not _may_use(sandbox, status):
        raise RepositoryPlaceError(
            f"{place} belongs to the user {status.st_uid}, and the stack's daemons could not write to it",
            remedy=f"Give it to the user of the stack: sudo chown {os.geteuid()} {path}. Or name another one.",
        )
    mark = _mark_in(found)
    if mark is not None and mark != {"home": str(home), "repository": number}:
        raise RepositoryPlaceError(
            f"{place} is that of repository {mark.get('repository')} of the stack in {mark.get('home')}",
            remedy=f"Name another directory. If that stack does not exist any more, remove {found / MARK}.",
        )
    names = {each.name for each in found.iterdir() if not is_partial(each)}
    if foreign := sorted(names - OWN - TOLERATED):
        more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
        raise RepositoryPlaceError(
            f"{place} has files that are not a repository's: {', '.join(foreign[:SHOWN])}{more}",
            remedy="Name an empty directory.",
        )


def _check_mounted(number: int, path: Path) -> None:
    if _mark_in(path) is None:
        raise RepositoryPlaceError(
            f"{path} is not the directory that backup repository {number} was in: it lacks {MARK}",
            remedy="Mount its disk. If the disk is lost, name another empty directory "
            f"({SETTING.format(index=number - 1)}): a new repository with a full backup is made there.",
        )


def _check_move(sandbox: Sandbox, number: int, old: Path, new: Path) -> None:
    """Check that a repository does not stay behind in `old`, and that what is in `new` is the same repository."""
    if any(old.glob("backup/*/*/backup.manifest")):
        if has_backups(new):
            raise RepositoryPlaceError(
                f"{old} and {new} both have backups, and the setting moves backup repository {number} to {new}",
                remedy="Move those away that you do not need, and run `observatory up` again.",
            )
        raise RepositoryPlaceError(
            f"backup repository {number} is in {old}, and the setting moves it to {new}, which is empty",
            remedy=f"Stop the stack (`observatory down --keep-data`), move the content (mv {old}/* {new}/) and run "
            f"`observatory up`. Or begin a new repository there: move the content of {old} elsewhere first.",
        )
    if has_backups(new):
        _check_own(sandbox, number, new)
    elif not _is_writable(new):
        raise RepositoryPlaceError(
            f"backup repository {number} cannot be made in {new}: it is read-only",
            remedy="Mount it with write access, or name another directory.",
        )


def _check_own(sandbox: Sandbox, number: int, place: Path) -> None:
    """Check that the stack's passphrase opens a repository, and that it has the backups of the stack's database."""
    remedy = (
        "Name an empty directory, or move its content away. `observatory bootstrap --restore-from` recovers a database "
        "from it: see docs/backups.md."
    )
    node = _node(sandbox, number, place)
    if node is None:
        raise RepositoryPlaceError(
            f"{place} has backups, and this stack has no passphrase of repository {number}: they are another stack's",
            remedy=remedy,
        )
    if not sandbox.rootfs.is_dir():
        return  # a preview before the first `up` of this version, which checks it
    stanza, error = read_stanza(node)
    if error:
        raise RepositoryPlaceError(
            f"the backups in {place} cannot be read as repository {number} of this stack: {error}", remedy=remedy
        )
    own = node.control.get("Database system identifier")
    if own and own != stanza["db"][-1]["system-id"]:
        raise RepositoryPlaceError(f"{place} has the backups of another database", remedy=remedy)


def _node(sandbox: Sandbox, number: int, place: Path) -> Node | None:
    """Return the stack's machine with the repository in `place`; None where the stack has no passphrase of it."""
    settings = sandbox.host_path(settings_file(Paths()))
    if not settings.exists() or not sandbox.host_path(cipher_file(Paths(), number)).exists():
        return None
    document = json.loads(settings.read_text(encoding="utf-8"))
    there = outside_repository(number)
    document |= {"repositories": [number], "pgbackrest": [*document["pgbackrest"], f"--repo{number}-path={there}"]}
    return nodes_of(document, partial(_run, sandbox, ("--ro-bind", str(place), there)))[number]


def _run(sandbox: Sandbox, mount: Sequence[str], argv: Sequence[str]) -> tuple[int, str]:
    options = ("--tmpfs", "/run", "--ro-bind", str(sandbox.home), "/srv", *mount, "--chdir", "/srv")
    command = bubblewrap.command(sandbox.rootfs, sandbox.entry, argv, mounts=(*options, bubblewrap.WITH_PARENT))
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, errors="replace", check=False)
    return done.returncode, done.stdout or done.stderr


def _may_use(sandbox: Sandbox, status: os.stat_result) -> bool:
    """Return whether a directory belongs to the caller, or, for root, to its daemons or to no account."""
    if status.st_uid == os.geteuid():
        return True
    if not sandbox_user.needed():
        return False
    owner = sandbox_user.recorded(sandbox.home)
    with contextlib.suppress(KeyError):
        return bool(owner and owner.uid == status.st_uid) or not pwd.getpwuid(status.st_uid)
    return True


def _is_writable(directory: Path) -> bool:
    nearest = next(each for each in (directory, *directory.parents) if each.exists())
    return not os.statvfs(nearest).f_flag & os.ST_RDONLY


def _mark_in(path: Path) -> dict[str, object] | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _mark(descriptor)
    finally:
        os.close(descriptor)


def _mark(directory: int) -> dict[str, object] | None:
    """Return the content of the mark in an open directory; None without one. No link is followed."""
    try:
        file = os.open(MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        found = json.loads(os.read(file, MARK_BYTES))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}
    finally:
        os.close(file)
