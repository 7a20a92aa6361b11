"""Flashback: an earlier state of the database beside the live one, and putting back rows that are missing."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from observatory.backups.flashback import clones
from observatory.backups.flashback.clones import Clone
from observatory.backups.flashback.difference import Difference, Request
from observatory.backups.flashback.errors import NothingNamedError
from observatory.backups.target import RecoveryTarget
from observatory.operations.delivery_journal import audited, record_event
from observatory.operations.migration_targets import database_target
from observatory.platforms import open_platform
from observatory.platforms.errors import StackNotUpError
from observatory.platforms.platform import check_supported
from observatory.progress import Reporter, silent, task, warn
from observatory.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Flashback:
    """An open clone, and how a table differs from it; None without a table."""

    clone: Clone
    difference: Difference | None


def flash_back(
    workspace: Workspace,
    *,
    to_time: str,
    table: str | None = None,
    where: str | None = None,
    restore_missing: bool = False,
    repository: int | None = None,
    report: Reporter = silent,
) -> Flashback:
    """Open a read-only clone of the database at an earlier time, and compare a table with it.

    A clone of that time that is open already is used again. It stays open until it is closed, for a day at most.

    Args:
        workspace: of the stack.
        to_time: a time with its time zone, `latest`, a position in the WAL or the label of a backup.
        table: that is compared with the live one; None: no table.
        where: a condition of the rows that are compared, as after WHERE.
        restore_missing: insert the rows that the live table lacks, in one transaction, and refresh its aggregates.
        repository: number of the only repository to restore from; None: any.
        report: gets the progress.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack is not up, or its platform is not supported.
        InvalidTargetError, NothingNamedError, ConditionError: wrong usage.
        UncoveredTargetError, NotEnoughSpaceError, CloneRefusedError: no clone can be opened; nothing was changed.
        TableRefusedError, LockHeldError: the table cannot be compared or restored; nothing was changed.
        NotRestoredError: PostgreSQL refused a row, and none was inserted.
        NotRefreshedError: the rows are inserted, an aggregate is not refreshed.
        BackupError, DatabaseError: the restore or a query failed.
    """
    check_supported(open_platform(workspace), "backup")
    if table is None and (where is not None or restore_missing):
        raise NothingNamedError("--where and --restore-missing are about the rows of a table: name it with --table")
    target = RecoveryTarget.parse(to_time)
    if not workspace.sandbox.alive():
        raise StackNotUpError(workspace.stack)
    live = database_target(workspace).conninfo
    if table is not None:
        _check(live, Request(table=table, where=where, restore=restore_missing, at=str(target)))
    clone = _open(workspace, target, live, repository, report)
    if table is None:
        return Flashback(clone=clone, difference=None)
    request = Request(table=table, where=where, restore=restore_missing, at=clone.target)
    if not restore_missing:
        return Flashback(clone=clone, difference=_compare(workspace, clone, live, request, report))
    details = {"table": table, "where": where, "to_time": str(target)}
    with audited(workspace, "flashback", **details):
        found = _compare(workspace, clone, live, request, report)
    restored = found.restored
    record_event(workspace, "flashback", **details, inserted=restored.inserted if restored else 0)
    return Flashback(clone=clone, difference=found)


def list_clones(workspace: Workspace) -> list[tuple[Clone, int]]:
    """Return the open clones of the stack, the oldest first, and the bytes that each takes on the disk.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack was never up, or its platform is not supported.
    """
    _check_created(workspace)
    return [(each, clones.size_of(workspace.sandbox, each)) for each in clones.list_clones(workspace.sandbox)]


def close_clones(
    workspace: Workspace, names: Sequence[str] = (), *, every: bool = False, expired: bool = False
) -> list[str]:
    """Close clones and remove their files; return their names.

    Args:
        workspace: of the stack.
        names: of the clones.
        every: all of them.
        expired: those that are open for longer than a day, and what killed commands have left.

    Raises:
        NothingNamedError: neither is given, or more than one; nothing was closed.
        StackNotUpError, UnsupportedOperationError: the stack was never up, or its platform is not supported.
        UnknownCloneError: there is none of a name; nothing was closed.
        BackupError: a process of a clone does not end.
    """
    if (bool(names), every, expired).count(True) != 1:
        raise NothingNamedError(
            "name the clones to close, or give one of --all and --expired",
            remedy="`observatory backup flashback list` shows the open clones.",
        )
    _check_created(workspace)
    sandbox = workspace.sandbox
    if expired:
        return clones.close_expired(sandbox)
    return clones.close_clones(sandbox, names or [each.name for each in clones.list_clones(sandbox)])


def _open(workspace: Workspace, target: RecoveryTarget, live: str, repository: int | None, report: Reporter) -> Clone:
    with task(report, f"clone at {target}") as step:
        return clones.open_clone(
            workspace.sandbox,
            target,
            **_identity(live),
            repository=repository,
            on_step=step,
            on_other=partial(warn, report),
        )


def _compare(workspace: Workspace, clone: Clone, live: str, request: Request, report: Reporter) -> Difference:
    from observatory.backups.flashback.flashback import compare_table  # noqa: PLC0415 - loads the SQL parser

    name = f"restore missing rows of {request.table}" if request.restore else f"compare {request.table}"
    with task(report, name) as step:
        return compare_table(
            clone.conninfo,
            live,
            request,
            free_bytes=partial(_free, workspace),
            on_range=lambda done, ranges, missing: step(f"{done} of {ranges} chunks, {missing} rows missing"),
        )


def _check(live: str, request: Request) -> None:
    """Refuse a table or a condition that cannot be right, before anything is restored."""
    from observatory.backups.flashback.flashback import check_request  # noqa: PLC0415 - loads the SQL parser

    check_request(live, request)


def _identity(conninfo: str) -> dict[str, Any]:
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - only for a database session

    found = conninfo_to_dict(conninfo)
    return {"database": str(found["dbname"]), "user": str(found["user"])}


def _free(workspace: Workspace) -> int:
    return shutil.disk_usage(workspace.home).free


def _check_created(workspace: Workspace) -> None:
    check_supported(open_platform(workspace), "backup")
    if not workspace.sandbox.home.is_dir():
        raise StackNotUpError(workspace.stack)
