"""Space on disks: what restores, dumps and backups leave free, and whether a full backup fits into its repository."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from observatory.backups.tool import Backup, BackupError, BackupTool, BackupType, RepositoryUnwritableError
from observatory.nodes.programs.backup_repository import STANZA, Node

RESERVE_BYTES = 512 << 20  # of the disk, which stay free for the live database and its WAL
LEAST_FREE_BYTES = 32 << 20  # two WAL segments
MANIFEST = "backup.manifest"
SIZE = "SELECT sum(pg_database_size(oid)) FROM pg_database WHERE datallowconn"


def available_bytes(place: Path) -> int:
    """Return how many bytes of a file system may be written."""
    disk = os.statvfs(place)
    return disk.f_bavail * disk.f_frsize


def check_room(tool: BackupTool, node: Node, place: Path, kind: BackupType) -> None:
    """Check that a full backup fits into a repository on a disk: one that fills it would keep WAL from being archived.

    The estimate is the size of the database, compressed as in the newest full backup. A repository without a full
    backup gets its first one, of whatever kind, which `up` makes: it is refused only where it cannot fit at all.

    Args:
        tool: knows the backups of every repository.
        node: the machine with the repository.
        place: the directory of the repository.
        kind: of the backup.

    Raises:
        RepositoryUnwritableError: it does not fit.
    """
    own = _full(tool, [node.repository])
    last = max(own or _full(tool, tool.repositories), key=lambda each: each.ended, default=None)
    if last is None or not place.is_dir() or (own and kind is not BackupType.FULL):
        return
    reserve = RESERVE_BYTES if own else LEAST_FREE_BYTES
    database_bytes = int(node.query(SIZE) or last.database_bytes)
    needed = database_bytes * last.repository_bytes // max(1, last.database_bytes)
    free = available_bytes(place) + _unfinished_bytes(node.listing(f"backup/{STANZA}"))
    if free < needed + reserve:
        raise RepositoryUnwritableError(
            f"a full backup takes about {needed >> 20} MiB in backup repository {node.repository} ({place}), and of "
            f"the {free >> 20} MiB that are available {reserve >> 20} MiB stay free for WAL",
            remedy="Free space on the disk, enlarge it, or move the repository to another one: see docs/backups.md. "
            "With a shorter `backups.retention_days` earlier backups expire after the next incremental one.",
        )


def _full(tool: BackupTool, numbers: Sequence[int]) -> list[Backup]:
    """Return the full backups of repositories; one that cannot be read has none, and pgBackRest's error says more."""
    found: list[Backup] = []
    for number in numbers:
        with suppress(BackupError):
            found += [each for each in tool.info(number) if each.type is BackupType.FULL]
    return found


def _unfinished_bytes(files: Mapping[str, int]) -> int:
    """Return the size of what interrupted backups have left, which the next one uses again or removes."""
    of_backup = {path: path.partition("/")[0] for path in files if path[:8].isdigit()}  # not those of backup.history
    finished = {of_backup[path] for path in of_backup if path.partition("/")[2] == MANIFEST}
    return sum(files[path] for path, label in of_backup.items() if label not in finished)
