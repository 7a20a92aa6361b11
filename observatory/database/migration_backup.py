"""The backup before a migration: chooses its type, makes it and verifies it before anything changes.

Decides whether to make a full or an incremental backup. The caller implements `Backup`, which makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import psycopg

FULL_IS_RECENT = timedelta(days=8)  # a weekly full backup may be one day late

Kind = Literal["full", "incr"]

# Ignores the objects of extensions, and the audit's table, which every new database has.
_HAS_DATA = """
    SELECT EXISTS (
        SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'm') AND nspname !~ '^(pg_|_timescaledb_)'
          AND nspname NOT IN ('information_schema', 'audit')
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                          AND d.deptype = 'e'))
"""


class Backup(Protocol):
    """Makes and verifies backups of the database's server. Each method raises `BackupFailedError`."""

    def latest_full(self) -> datetime | None:
        """Return when the newest usable full backup ended; None where there is none."""

    def create(self, kind: Kind) -> str:
        """Make a backup and return its label."""

    def verify(self, label: str) -> None:
        """Check that a backup is complete and can be restored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedBackup:
    """The backup that a deployment would make; `why` gives the reason in one line."""

    kind: Kind
    why: str


def plan_backup(backup: Backup, *, now: datetime | None = None) -> PlannedBackup:
    """Choose an incremental backup where a full one of the last eight days exists, else a full one.

    Raises:
        BackupFailedError: the backups cannot be listed.
    """
    latest, now = backup.latest_full(), now or datetime.now(UTC)
    if latest is None:
        return PlannedBackup(kind="full", why="there is no full backup yet")
    if now - latest > FULL_IS_RECENT:
        return PlannedBackup(kind="full", why=f"the last full backup is {(now - latest).days} days old")
    return PlannedBackup(kind="incr", why=f"the last full backup ended at {latest:%Y-%m-%d %H:%M} UTC")


def make_backup(backup: Backup, report: Callable[[str], None]) -> str:
    """Make the planned backup, verify it, and return its label.

    Raises:
        BackupFailedError: the backup or its verification failed.
    """
    planned = plan_backup(backup)
    report(f"{planned.kind} backup: {planned.why}")
    label = backup.create(planned.kind)
    report(f"verifying {label}")
    backup.verify(label)
    return label


def has_data(connection: psycopg.Connection) -> bool:
    """Return whether the database has a table that no extension made; an empty database needs no backup."""
    row = connection.execute(_HAS_DATA.encode()).fetchone()
    return bool(row and row[0])
