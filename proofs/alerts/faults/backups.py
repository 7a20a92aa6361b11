"""Faults of backups and of the WAL archive."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from observatory.backups.pgbackrest import SWITCH
from proofs.alerts.monitored import COMMAND_S, Monitored
from proofs.alerts.round import Fault

CONTENT = "SELECT pg_logical_emit_message(true, 'proof', 'a segment with content')"
PAGE = 4096  # somewhere in the first page of a table


def _archived_segment(stack: Monitored) -> Path:
    """Return the file of a segment in repository 1 that lies between two backups' ends and the newest WAL."""
    stack.checkout.run("backup", "create", "--repository", "1")
    stack.superuser(CONTENT)
    name = stack.superuser(SWITCH).strip()
    stack.superuser(CONTENT)
    stack.superuser(SWITCH)
    pattern = f"data/backups/archive/observatory/17-1/{name[:16]}/{name}-*.zst"
    stack.wait_for(lambda: list(stack.checkout.home.glob(pattern)), f"{name} in the archive", timeout_s=COMMAND_S)
    [file] = stack.checkout.home.glob(pattern)
    return file


@contextlib.contextmanager
def segment_removed(stack: Monitored) -> Iterator[None]:
    """Remove an archived segment, and let the job find it."""
    _archived_segment(stack).unlink()
    stack.checkout.run("scheduler", "run", "backup-check")
    yield


@contextlib.contextmanager
def drill_failed(stack: Monitored) -> Iterator[None]:
    """Remove an archived segment, and let a restore drill fail on it."""
    _archived_segment(stack).unlink()
    stack.checkout.run("backup", "restore-test", "--repository", "1", expect=1)
    yield


@contextlib.contextmanager
def page_damaged(stack: Monitored) -> Iterator[None]:
    """Damage a page of a table, and make a full backup of it."""
    stack.superuser("CREATE TABLE precious AS SELECT generate_series(1, 1000) AS n")
    stack.superuser("CHECKPOINT")
    path = stack.superuser("SELECT pg_relation_filepath('precious')")
    with (stack.checkout.home / "data/postgres" / path).open("r+b") as file:
        file.seek(PAGE)
        file.write(b"damage")
    stack.checkout.run("backup", "create", "--type", "full", expect=1)
    stack.superuser("DROP TABLE precious")  # the runbook: the damaged table is copied, as far as it can be, and dropped
    yield


@contextlib.contextmanager
def repository_lost(stack: Monitored) -> Iterator[None]:
    """Remove a repository."""
    shutil.rmtree(stack.checkout.home / "data/backups")
    yield


@contextlib.contextmanager
def archiving_fails(stack: Monitored) -> Iterator[None]:
    """Remove a repository, and write WAL, which cannot be archived to it."""
    with repository_lost(stack):
        stack.superuser(CONTENT)
        stack.superuser(SWITCH)
        yield


BACKUPS = (
    Fault(alert="StorageArchiveGap", what="an archived WAL segment is removed", inject=segment_removed),
    Fault(
        alert="StorageRestoreDrillStale",
        what="an archived WAL segment is removed, and a restore drill finds that",
        inject=drill_failed,
    ),
    Fault(
        alert="StorageBackupDamaged",
        what="bytes of a table's page are overwritten, and a full backup copies it",
        inject=page_damaged,
    ),
    Fault(alert="StorageBackupStale", what="the directory of a repository is removed", inject=repository_lost),
    Fault(
        alert="StorageWalArchiveFailing",
        what="the directory of a repository is removed, and WAL is written",
        inject=archiving_fails,
    ),
)
