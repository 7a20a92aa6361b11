"""Alerts on the backup repository: the WAL archive has no gap, and backups are sound.

A job checks the repository every five minutes and writes the number of its findings to a file that node_exporter reads.
"""

from __future__ import annotations

from monitoring.model import Alert, Firing, Runbook, Scenario, Scope

BRIDGE = "1m"  # how long the last value of a series is used when scrapes fail


def _archive_gap(scope: Scope) -> str:
    return f"max by (stack) (last_over_time({scope.select('observatory_archive_gaps')}[{BRIDGE}])) > 0"


def _backup_damaged(scope: Scope) -> str:
    return f"max by (stack) (last_over_time({scope.select('observatory_backups_damaged')}[{BRIDGE}])) > 0"


ARCHIVE_GAP = Alert(
    name="StorageArchiveGap",
    expression=_archive_gap,
    pending="6m",  # a second check confirms it: a promotion archives the last segments of the old timeline late
    severity="critical",
    component="database",
    category="backups",
    summary="The WAL archive has a gap: a restore ends before it",
    description="The check of the WAL archive has {{ $value }} findings.",
    runbook=Runbook(
        meaning=(
            "WAL between the oldest backup and the newest archived segment is missing, empty or stored twice, a "
            "timeline's history is missing, or the repository cannot be read."
        ),
        impact=(
            "A restore of an earlier backup ends before the gap, without an error. Transactions after it cannot be "
            "restored until a new full backup exists."
        ),
        diagnosis=(
            "`observatory backup verify` names the segments and files.",
            "`observatory backup list` shows which backups can be restored to now.",
        ),
        remedy=(
            "If the segments are still in `data/postgres/pg_wal`, copy nothing by hand: make a new full backup.",
            (
                "`observatory backup create --type full`. The alert ends after the next check, within five minutes. "
                "Restores to a time before this backup remain limited by the gap."
            ),
            "If the repository cannot be read, the command's message names the way out.",
            "Find out what removed the files: only pgBackRest may write to the repository.",
        ),
    ),
    fault="Remove an archived WAL segment.",
    scenarios=(
        Scenario(
            name="a segment is removed and a full backup follows",
            interval="1m",
            series={'observatory_archive_gaps{stack="test",job="node"}': "0x4 1x14 0x10"},
            quiet=("4m", "9m", "22m"),
            fires=(Firing(at="12m", description="The check of the WAL archive has 1 findings."),),
        ),
        Scenario(
            name="a segment is archived late",
            interval="1m",
            series={'observatory_archive_gaps{stack="test",job="node"}': "0x4 1x4 0x10"},
            quiet=("12m",),
        ),
    ),
)

BACKUP_DAMAGED = Alert(
    name="StorageBackupDamaged",
    expression=_backup_damaged,
    severity="critical",
    component="database",
    category="backups",
    summary="A backup is damaged and no sound full backup was made since",
    description="The check of the backups has {{ $value }} findings.",
    runbook=Runbook(
        meaning=(
            "PostgreSQL's data files have pages with wrong checksums, which a backup has copied; or a backup's files "
            "in the repository are missing or damaged."
        ),
        impact=(
            "A restore of this backup, and of those that build on it, has the same damage. The last sound full backup "
            "and its WAL do not expire until a new sound one exists."
        ),
        diagnosis=(
            "`observatory backup verify` names the backup, the damaged files and their tables or indexes.",
            "`observatory backup verify --contents` reads every file of the repository.",
            "Check the machine's disk and memory: page damage comes from below PostgreSQL.",
        ),
        remedy=(
            "An index: `REINDEX INDEX CONCURRENTLY <name>`.",
            (
                "A table: copy what can be read, or restore the last sound backup to now: full-page images in the WAL "
                "replace the damaged page if it was written since that backup."
            ),
            "Then `observatory backup create --type full`. The alert ends when that backup is sound.",
        ),
    ),
    fault="Change a byte in a table's file and make a full backup.",
    scenarios=(
        Scenario(
            name="a damaged backup, then a sound one",
            interval="1m",
            series={'observatory_backups_damaged{stack="test",job="node"}': "0x4 2x5 0x10"},
            quiet=("4m", "12m"),
            fires=(Firing(at="5m", description="The check of the backups has 2 findings."),),
        ),
    ),
)

MAX_DRILL_AGE_S = 8 * 86_400  # one a week, and a day for it to be repeated


def _drill_stale(scope: Scope) -> str:
    """Return an expression for the age of the newest proven state in seconds, if it is old or the last drill failed."""
    proven = scope.select("observatory_restore_drill_proven_timestamp_seconds")
    failed = scope.select("observatory_restore_drill_failed")
    age = f"(time() - max by (stack) (last_over_time({proven}[{BRIDGE}])))"
    has_failed = f"max by (stack) (last_over_time({failed}[{BRIDGE}])) == 1"
    return f"{age} > {MAX_DRILL_AGE_S} or ({age} and {has_failed})"


DRILL_STALE = Alert(
    name="StorageRestoreDrillStale",
    expression=_drill_stale,
    severity="critical",
    component="database",
    category="backups",
    summary="The last restore drill failed, or none has passed for too long",
    description=(
        "The newest state that a restore drill has proven is {{ $value | humanizeDuration }} old, "
        "or the last drill failed."
    ),
    runbook=Runbook(
        meaning=(
            "Every week a job restores a backup beside the live database, and compares it with values that were "
            "recorded at the same place in the WAL. The last such drill found a fault, or none has passed for eight "
            "days."
        ),
        impact=(
            "It is not known whether the backups can be restored. With `backups.require_drill_days`, migrations are "
            "refused."
        ),
        diagnosis=(
            "`observatory scheduler list` shows when the job `restore-drill` last ran, and how it ended.",
            "`log/job-restore-drill.log` in the stack's home has the checks with their results.",
            "`observatory backup restore-test --repository N` repeats the drill with one repository.",
        ),
        remedy=(
            (
                "`cover` or `restore` failed: a file of the backup or WAL is missing or damaged. `observatory backup "
                "verify --contents` names it. Make a new full backup: `observatory backup create --type full`."
            ),
            (
                "`values` failed: the restored rows differ from the live ones. Keep the repository as it is. The "
                "receipt in `data/receipts` names the tables and blocks that differ."
            ),
            (
                "`pages` failed: pg_amcheck found corruption. If pg_amcheck finds it in the live database, too, repair "
                "it there (an index: `REINDEX INDEX CONCURRENTLY <name>`), then make a full backup."
            ),
            "Then `observatory backup restore-test`. The alert ends within five minutes after it has passed.",
        ),
    ),
    fault="Remove an archived WAL segment and run `observatory backup restore-test`.",
    scenarios=(
        Scenario(
            name="a drill fails and the next one passes",
            interval="1m",
            series={
                'observatory_restore_drill_proven_timestamp_seconds{stack="test",job="node"}': "0x9 600x20",
                'observatory_restore_drill_failed{stack="test",job="node"}': "0x4 1x4 0x20",
            },
            quiet=("4m", "12m"),
            fires=(
                Firing(
                    at="6m",
                    description=(
                        "The newest state that a restore drill has proven is 6m 0s old, or the last drill failed."
                    ),
                ),
            ),
        ),
        Scenario(
            name="no drill passes for eight days",
            interval="1h",
            series={
                'observatory_restore_drill_proven_timestamp_seconds{stack="test",job="node"}': "0x200",
                'observatory_restore_drill_failed{stack="test",job="node"}': "0x200",
            },
            quiet=("7d", "8d"),
            fires=(
                Firing(
                    at="8d1h",
                    description=(
                        "The newest state that a restore drill has proven is 8d 1h 0m 0s old, or the last drill failed."
                    ),
                ),
            ),
        ),
    ),
)

BACKUPS = (ARCHIVE_GAP, BACKUP_DAMAGED, DRILL_STALE)
