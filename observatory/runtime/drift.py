"""Compares the files of a sandbox with the declared ones. Changes nothing; `SandboxFiles` repairs what is found."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from observatory.files.atomic import PRIVATE, is_partial
from observatory.runtime.sandbox_files import INSIDE, OTHERS_WRITE, SandboxFiles

MISSING = "is missing"
CHANGED = "was changed"
LINK = "is a symbolic link"
NO_FILE = "is not a regular file"
NOT_DECLARED = "is not declared"


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A path inside the sandbox and what is wrong with it.

    `content` is whether a daemon may have read something else than the declared files.
    """

    path: str
    problem: str
    content: bool = True

    def __str__(self) -> str:
        """Return one clause of a message."""
        return f"{self.path} {self.problem}"


def find_drift(
    files: SandboxFiles,
    declared: Mapping[str, str | None],
    *,
    directories: Collection[str] = (),
    whole: Collection[str] = (),
) -> tuple[Drift, ...]:
    """Return how the disk differs from what is declared.

    Args:
        files: of the sandbox.
        declared: contents by path inside, None where any will do. Each is a regular file that only its owner can use.
        directories: that exist, and in which only their owner can replace files.
        whole: directories that daemons read as a whole, so that every other file in them counts.
    """
    wrong = {drift.path: drift for path in (*declared, *directories) for drift in _parents(files, path)}
    wrong |= {path: drift for path in directories if (drift := _wrong_directory(files.host_path(path), path))}
    elsewhere = tuple(path for path, drift in wrong.items() if drift.problem == LINK)
    reachable = {path: text for path, text in declared.items() if not any(_below(path, each) for each in elsewhere)}
    wrong |= {path: drift for path, text in reachable.items() if (drift := _wrong_file(files, path, text))}
    return (*wrong.values(), *(drift for directory in whole for drift in extra_files(files, declared, directory)))


def fingerprint(directory: Path) -> str:
    """Return a digest of the names, kinds, sizes, modes and times of all files below a directory.

    It takes a hundredth of the time of reading them. Python writes its cache there, which does not count.
    """
    digest = hashlib.sha256()
    for top, directories, names in os.walk(directory):
        directories[:] = sorted(set(directories) - {"__pycache__"})
        for name in sorted(names):
            status = Path(top, name).lstat()
            relative = Path(top, name).relative_to(directory)
            digest.update(f"{relative}\0{status.st_mode}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def extra_files(files: SandboxFiles, declared: Iterable[str], directory: str) -> Iterator[Drift]:
    """Yield what is in a directory and not among the declared paths; unfinished files of writers do not count."""
    expected = {PurePosixPath(path).relative_to(directory).parts[0] for path in declared if _below(path, directory)}
    for entry in sorted(files.host_path(directory).glob("*")):
        if entry.name not in expected and not is_partial(entry):
            yield Drift(path=f"{directory}/{entry.name}", problem=NOT_DECLARED)


def _parents(files: SandboxFiles, path: str) -> Iterator[Drift]:
    """Yield what is wrong with the directories above a path; a missing one shows in what it contained."""
    for parent in tuple(reversed(PurePosixPath(path).relative_to(INSIDE).parents))[1:]:
        drift = _wrong_directory(files.home / parent, f"{INSIDE}/{parent}")
        if drift and drift.problem != MISSING:
            yield drift


def _wrong_directory(directory: Path, path: str) -> Drift | None:
    try:
        mode = directory.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return Drift(path=path, problem=MISSING)
    if stat.S_ISLNK(mode):
        return Drift(path=path, problem=LINK)
    if mode & OTHERS_WRITE:
        return Drift(path=path, problem=_mode(mode, 0o700), content=False)
    return None


def _wrong_file(files: SandboxFiles, path: str, content: str | None) -> Drift | None:
    file, problem = files.host_path(path), None
    try:
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):
            problem = LINK if stat.S_ISLNK(status.st_mode) else NO_FILE
        elif content is not None and _digest(file.read_bytes()) != _digest(content.encode()):
            problem = CHANGED
    except (FileNotFoundError, NotADirectoryError):
        problem = MISSING
    except PermissionError:
        problem = "cannot be read"
    if problem:
        return Drift(path=path, problem=problem)
    if (owner := files.owner_of(path)) and not owner.owns(status):
        return Drift(path=path, problem=f"belongs to the user {status.st_uid}, not {owner.uid}")
    if stat.S_IMODE(status.st_mode) != PRIVATE:
        return Drift(path=path, problem=_mode(status.st_mode, PRIVATE), content=False)
    return None


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _below(path: str, directory: str) -> bool:
    return PurePosixPath(path).is_relative_to(directory)


def _mode(mode: int, expected: int) -> str:
    return f"has the mode {stat.S_IMODE(mode):04o}, not {expected:04o}"
