"""The files of a backup repository by kind, and a flipped byte in one of them."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

# By what a path has in it; the first that fits.
KINDS = {
    "earlier manifest": "backup.history/",
    "copy of the manifest": "backup.manifest.copy",
    "manifest": "backup.manifest",
    "copy of the information about backups": "backup.info.copy",
    "information about backups": "backup.info",
    "copy of the information about the archive": "archive.info.copy",
    "information about the archive": "archive.info",
    "history of a timeline": ".history",
    "label of a backup in the archive": ".backup",
    "partial WAL segment": ".partial-",
    "WAL segment": "archive/",
    "bundle": "/bundle/",
    "block incremental file": ".pgbi",
    "data file": "/pg_data/",
}


def files_by_kind(repository: Path) -> dict[str, list[Path]]:
    """Return the files of pgBackRest in a repository, by kind."""
    found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for file in sorted(each for name in ("archive", "backup") for each in (repository / name).rglob("*")):
        if file.is_file() and not any(each.is_symlink() for each in (file, *file.parents)):
            path = str(file.relative_to(repository))
            found[next(kind for kind, part in KINDS.items() if part in path)].append(file)
    return found


@contextlib.contextmanager
def flipped_byte(file: Path, draw: random.Random) -> Iterator[int]:
    """Change one byte of a file, anywhere in it, and yield its place; afterwards the file is as before."""
    place = draw.randrange(file.stat().st_size)
    descriptor = os.open(file, os.O_RDWR)
    try:
        [whole] = os.pread(descriptor, 1, place)
        os.pwrite(descriptor, bytes([whole ^ draw.randrange(1, 256)]), place)
        yield place
    finally:
        os.pwrite(descriptor, bytes([whole]), place)
        os.close(descriptor)


def named(file: Path) -> str:
    """Return the end of a path by which a finding names a file; of a pair, both are under the name of the first."""
    return "/".join(file.parts[-2:]).removesuffix(".copy")
