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
PlannedKind = Literal["full", "incr", "reuse"]

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
    """Makes and verifies backups of the database's server. Each method may raise `BackupFailedError`."""

    def check_permitted(self) -> None:
        """Refuse migrations where the settings require a restore drill and none is young enough.

        Raises:
            DrillRequiredError: it is so.
        """

    def latest_full(self) -> datetime | None:
        """Return when the newest usable full backup ended; None where there is none."""

    def reusable(self) -> ReusableBackup | None:
        """Return a recent backup from which the database can be restored to now; None where there is none."""

    def archive(self) -> None:
        """Archive the WAL up to now."""

    def create(self, kind: Kind) -> str:
        """Make a backup and return its label."""

    def verify(self, label: str) -> None:
        """Check that a backup is complete and can be restored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReusableBackup:
    """A backup that is young enough: its label, when it ended, and the age that is allowed in minutes."""

    label: str
    ended: datetime
    minutes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedBackup:
    """The backup that a deployment would make, or the existing one that it would use.

    Attributes:
        kind: of the new backup; `reuse`: an existing one is enough.
        why: the reason in one line.
        label: of the existing backup.
    """

    kind: PlannedKind
    why: str
    label: str | None = None


def plan_backup(backup: Backup, *, now: datetime | None = None, reuse: bool = True) -> PlannedBackup:
    """Choose a recent backup, else an incremental one where a full one of the last eight days exists, else a full one.

    With a recent backup and the WAL since, the database can be restored to the time right before the migrations.

    Raises:
        BackupFailedError: the backups cannot be listed.
    """
    if reuse and (recent := backup.reusable()):
        why = (
            f"{recent.label} of {recent.ended:%Y-%m-%d %H:%M} UTC is younger than {recent.minutes} minutes "
            "(backups.reuse_minutes), and the WAL since then is archived"
        )
        return PlannedBackup(kind="reuse", why=why, label=recent.label)
    latest, now = backup.latest_full(), now or datetime.now(UTC)
    if latest is None:
        return PlannedBackup(kind="full", why="there is no full backup yet")
    if now - latest > FULL_IS_RECENT:
        return PlannedBackup(kind="full", why=f"the last full backup is {(now - latest).days} days old")
    return PlannedBackup(kind="incr", why=f"the last full backup ended at {latest:%Y-%m-%d %H:%M} UTC")


def make_backup(backup: Backup, report: Callable[[str], None], *, reuse: bool = True) -> str:
    """Make the planned backup, or archive the WAL since the existing one; verify it, and return its label.

    Args:
        backup: makes it.
        report: called with the progress.
        reuse: use a recent backup where there is one.

    Raises:
        BackupFailedError: the backup, its verification or the archiving failed.
    """
    planned = plan_backup(backup, reuse=reuse)
    if planned.label is not None:
        report(f"no new backup: {planned.why}")
        backup.archive()
        label = planned.label
    else:
        kind: Kind = "full" if planned.kind == "full" else "incr"
        report(f"{kind} backup: {planned.why}")
        label = backup.create(kind)
    report(f"verifying {label}")
    backup.verify(label)
    return label


def has_data(connection: psycopg.Connection) -> bool:
    """Return whether the database has a table that no extension made; an empty database needs no backup."""
    row = connection.execute(_HAS_DATA.encode()).fetchone()
    return bool(row and row[0])
