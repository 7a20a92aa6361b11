"""The directory that all checkouts of one user share, for files that are costly to build and equal in every checkout.

It is `OBSERVATORY_CACHE_DIR`, or `llm-observatory` below `XDG_CACHE_HOME` or `~/.cache`. The name of every entry has a
digest of its inputs, so that checkouts of different versions share one directory.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from observatory.errors import WRONG_USAGE, ObservatoryError

VARIABLE = "OBSERVATORY_CACHE_DIR"
WRITABLE_BY_OTHERS = 0o022
KEPT_UNUSED_DAYS = 30  # of entries of other versions: their checkouts may come back


class CacheError(ObservatoryError):
    """`OBSERVATORY_CACHE_DIR` names a directory that cannot be used."""

    exit_code = WRONG_USAGE


def shared_directory() -> Path:
    """Return the shared directory, which need not exist."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser().absolute()
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches).absolute() / "llm-observatory"
    return home_directory() / ".cache/llm-observatory"


def home_directory() -> Path:
    """Return HOME or the home of this process' account; a path below which nothing can be if it has neither."""
    # An empty HOME counts as none: below it the directory would be /.cache.
    return Path(os.environ.get("HOME") or _home_of_account()).absolute()


def _home_of_account() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:  # as in a container that runs with a numeric user
        return os.devnull


def shared_or(own: Path) -> tuple[Path, str]:
    """Return the shared directory, which exists then, and an empty reason.

    Where it cannot be used, return the checkout's `own` directory instead, and the reason.

    Raises:
        CacheError: `OBSERVATORY_CACHE_DIR` is set and names a directory that cannot be used.
    """
    directory = shared_directory()
    reason = _unusable(directory)
    if not reason:
        return directory, ""
    if os.environ.get(VARIABLE):
        raise CacheError(
            f"{VARIABLE}={directory} cannot be used: {reason}",
            remedy="Name a directory of your own, or unset the variable.",
        )
    return own, f"{directory} cannot be used: {reason}"


def belongs_to_this_user(path: Path) -> bool:
    """Return whether this user owns `path` and no other user may write there: what it holds is executed."""
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & WRITABLE_BY_OTHERS


def mark_used(entry: Path) -> None:
    """Record that a checkout uses a shared entry, which `remove_unused` keeps then."""
    with contextlib.suppress(OSError):  # on a read-only disk nothing is removed either
        os.utime(entry)


def remove_unused(entry: Path, pattern: str, *, in_use: Callable[[Path], bool] = lambda _entry: False) -> None:
    """Remove the entries beside `entry` that match `pattern` and that no checkout has used for `KEPT_UNUSED_DAYS`.

    The caller holds the lock under which such entries are created.
    """
    oldest = time.time() - KEPT_UNUSED_DAYS * 24 * 3600
    for other in entry.parent.glob(pattern):
        if other != entry and other.is_dir() and other.stat().st_mtime < oldest and not in_use(other):
            shutil.rmtree(other)


def _unusable(directory: Path) -> str:
    """Return why this user cannot share `directory`, after creating it where it is missing; empty if it is usable."""
    try:
        if not directory.exists() and (parent := _existing_parent(directory)).stat().st_uid not in {0, os.geteuid()}:
            return f"{parent} belongs to another user"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid != os.geteuid():
            return "it belongs to another user"
        if not belongs_to_this_user(directory):
            return f"others may write to it; run: chmod go-w {shlex.quote(str(directory))}"
        return "" if os.access(directory, os.W_OK | os.X_OK) else "it is read-only"
    except FileExistsError:
        return "it is not a directory"
    except OSError as error:
        return error.strerror or str(error)


def _existing_parent(directory: Path) -> Path:
    return next(parent for parent in directory.parents if parent.exists())
