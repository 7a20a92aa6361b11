"""Names for files and directories that are not finished yet. They tell whose they are.

What a killed process leaves under such a name is removed by the next that writes beside it: nothing piles up.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

_NAME = re.compile(r"\..+\.(\d+)-\d+\.partial")
_numbers = itertools.count()


def partial_path(path: Path) -> Path:
    """Return an unused name beside `path`, for what is to be renamed to it; remove what dead processes left there."""
    remove_abandoned(path.parent)
    return path.with_name(f".{path.name}.{os.getpid()}-{next(_numbers)}.partial")


def remove_abandoned(directory: Path) -> None:
    """Remove what processes that run no more have begun in `directory` and did not finish."""
    for path in directory.glob(".*.partial"):
        match = _NAME.fullmatch(path.name)
        if match and not _runs(int(match[1])):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_secret_once(file: Path, draw: Callable[[], str]) -> bool:
    """Write what `draw` returns into a file that only its owner reads, whole, unless there is one; tell whether it was.

    Of two processes that do so at once, one has its way, and both find the same content afterwards.
    """
    if file.exists():
        return False
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = partial_path(file)
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(draw())
            stream.flush()
            os.fsync(stream.fileno())
        file.hardlink_to(partial)  # whole or not at all, and never over another one
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    return True


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
