"""Directories outside of a sandbox's home that its programs see, too.

They are recorded in a file of the home that only the operator can write: root's daemons cannot have root mount another
directory. Their places in the sandbox are in a directory that exists there alone, so that no daemon can move them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

RECORD = "/srv/mounts"  # directly in the home


def recorded(home: Path) -> dict[str, Path]:
    """Return the host's directories by their places in the sandbox."""
    try:
        text = (home / PurePosixPath(RECORD).name).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {place: Path(path) for place, path in json.loads(text).items()}


def record(mounts: Mapping[str, Path]) -> str:
    """Return the content of the record."""
    return json.dumps({place: str(path) for place, path in mounts.items()}, indent=2) + "\n"


def located(home: Path, inside: PurePosixPath) -> tuple[Path, PurePosixPath] | None:
    """Return the host's directory that a path is in, and the path below it; None for any other path."""
    for place, directory in recorded(home).items():
        if inside.is_relative_to(place):
            return directory, inside.relative_to(place)
    return None


def options(mounts: Mapping[str, Path], *, writable: bool = True) -> list[str]:
    """Return the options of bubblewrap that mount the directories; one that is not there now is left out.

    The daemons start without it: a lost disk of backups must not keep the database down.
    """
    word = "--bind" if writable else "--ro-bind"
    return [each for place, path in mounts.items() if path.is_dir() for each in (word, str(path), place)]


def are_seen(home: Path, pid: int) -> bool:
    """Return whether a process of the sandbox sees each of the directories that the host has now.

    A disk may have been mounted since the process started.
    """
    root = Path(f"/proc/{pid}/root")
    return all(_is_same(root / place.lstrip("/"), path) for place, path in recorded(home).items())


def _is_same(seen: Path, path: Path) -> bool:
    try:
        host = path.stat()
    except OSError:
        return True
    try:
        return os.path.samestat(seen.stat(), host)
    except OSError:
        return False
