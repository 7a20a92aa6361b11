"""Backups, the WAL archive, and drills that restore them."""

from __future__ import annotations

from monitoring.dashboards.model import Dashboard, Panel, Query, Section, Thresholds, Unbounded
from monitoring.dashboards.shared import BACKUP_AGE

HOUR_S, DAY_S = 3600, 86_400
NO_DRILL = "No drill has passed yet."

BACKUPS_MADE = Section(
    title="Backups",
    panels=(
        BACKUP_AGE,
        Panel(
            title="Age by type",
            description="Time since the last full, differential and incremental backup ended, of any repository.",
            unit="seconds",
            queries=(
                Query(
                    expression=(
                        'min by (backup_type) (pgbackrest_backup_since_last_completion_seconds{stack="$stack"})'
                    ),
                    legend="{{backup_type}}",
                ),
            ),
            thresholds=Thresholds(warning=8 * DAY_S, critical=15 * DAY_S),
            empty="No backup was made yet.",
        ),
        Panel(
            title="State of the repositories",
            description="Whether pgBackRest can use each repository.",
            unit="state",
            states={0.0: "usable", 1.0: "missing", 2.0: "no backup", 3.0: "no valid backup", 99.0: "error"},
            kind="stat",
            queries=(
                Query(
                    expression='max by (repo_key) (pgbackrest_repo_status{stack="$stack"})',
                    legend="repository {{repo_key}}",
                    instant=True,
                ),
            ),
            thresholds=Thresholds(critical=1),
            alerts=("StorageBackupStale",),
        ),
        Panel(
            title="Size of the database in backups",
            description="Size of the database that the last backup of each type contains.",
            unit="bytes",
            queries=(
                Query(
                    expression='max by (backup_type) (pgbackrest_backup_last_size_bytes{stack="$stack"})',
                    legend="{{backup_type}}",
                ),
            ),
            thresholds=Unbounded(reason="It grows with the database."),
            empty="No backup was made yet.",
        ),
        Panel(
            title="Size of backups in the repository",
            description="Compressed size of the last backup of each type, without the parts that earlier ones have.",
            unit="bytes",
            queries=(
                Query(
                    expression='max by (backup_type) (pgbackrest_backup_last_repo_delta_bytes{stack="$stack"})',
                    legend="{{backup_type}}",
                ),
            ),
            thresholds=Unbounded(reason="It grows with the changes to the database."),
            empty="No backup was made yet.",
        ),
        Panel(
            title="Duration of backups",
            description="Duration of the last backup of each type.",
            unit="seconds",
            queries=(
                Query(
                    expression='max by (backup_type) (pgbackrest_backup_last_duration_seconds{stack="$stack"})',
                    legend="{{backup_type}}",
                ),
            ),
            thresholds=Thresholds(warning=2 * HOUR_S, critical=6 * HOUR_S),
            empty="No backup was made yet.",
        ),
    ),
)

ARCHIVE = Section(
    title="WAL archive",
    panels=(
        Panel(
            title="Failed archiving",
            description="Attempts of the last ten minutes to archive a WAL segment that failed.",
            unit="count",
            queries=(
                Query(
                    expression='sum by (stack) (increase(pg_stat_archiver_failed_count{stack="$stack"}[10m]))',
                    legend="failed attempts",
                ),
            ),
            thresholds=Thresholds(warning=1, critical=3),
            alerts=("StorageWalArchiveFailing",),
        ),
        Panel(
            title="WAL that waits",
            description="WAL that a repository does not have yet. If it only grows, the disk fills.",
            unit="bytes",
            queries=(
                Query(expression='max by (stack) (observatory_wal_waiting_bytes{stack="$stack"})', legend="waiting"),
            ),
            thresholds=Thresholds(warning=1_000_000_000, critical=4_000_000_000),
        ),
        Panel(
            title="Archived segments",
            description="WAL segments that PostgreSQL has archived.",
            unit="per second",
            queries=(
                Query(
                    expression='sum by (stack) (rate(pg_stat_archiver_archived_count{stack="$stack"}[$window]))',
                    legend="segments",
                ),
            ),
            thresholds=Unbounded(reason="It follows the writes."),
        ),
    ),
)

PROOF = Section(
    title="Checks and drills",
    panels=(
        Panel(
            title="Gaps in the archive",
            description="Findings of the check of the WAL archive, by repository. A restore ends before a gap.",
            unit="count",
            kind="stat",
            width=6,
            queries=(
                Query(
                    expression='max by (repository) (observatory_archive_gaps{stack="$stack"})',
                    legend="repository {{repository}}",
                    instant=True,
                ),
            ),
            thresholds=Thresholds(critical=1),
            alerts=("StorageArchiveGap",),
        ),
        Panel(
            title="Damaged backups",
            description="Findings about backups with damaged or missing files, by repository.",
            unit="count",
            kind="stat",
            width=6,
            queries=(
                Query(
                    expression='max by (repository) (observatory_backups_damaged{stack="$stack"})',
                    legend="repository {{repository}}",
                    instant=True,
                ),
            ),
            thresholds=Thresholds(critical=1),
            alerts=("StorageBackupDamaged",),
        ),
        Panel(
            title="Last check",
            description="Time since each repository was checked. A check runs every five minutes.",
            unit="seconds",
            kind="stat",
            width=6,
            queries=(
                Query(
                    expression=(
                        'time() - max by (repository) (observatory_backup_check_timestamp_seconds{stack="$stack"})'
                    ),
                    legend="repository {{repository}}",
                    instant=True,
                ),
            ),
            thresholds=Thresholds(warning=900, critical=3600),
        ),
        Panel(
            title="Last drill",
            description="Result of the last drill, which restores a backup and compares it with the database.",
            unit="state",
            states={0.0: "no failure", 1.0: "failed"},
            kind="stat",
            width=6,
            queries=(
                Query(
                    expression='max by (stack) (observatory_restore_drill_failed{stack="$stack"})',
                    legend="drill",
                    instant=True,
                ),
            ),
            thresholds=Thresholds(critical=1),
            alerts=("StorageRestoreDrillStale",),
            empty=NO_DRILL,
        ),
        Panel(
            title="Age of the proven state",
            description="Time since the newest state that a drill has restored exactly. A drill runs each week.",
            unit="seconds",
            queries=(
                Query(
                    expression=(
                        'time() - max by (stack) (observatory_restore_drill_proven_timestamp_seconds{stack="$stack"})'
                    ),
                    legend="proven",
                ),
            ),
            thresholds=Thresholds(warning=8 * DAY_S, critical=15 * DAY_S),
            alerts=("StorageRestoreDrillStale",),
            empty=NO_DRILL,
        ),
        Panel(
            title="Restore time (RTO)",
            description="Duration of the last drill's restore, by repository, until the database could be read.",
            unit="seconds",
            queries=(
                Query(
                    expression='max by (repository) (observatory_restore_drill_rto_seconds{stack="$stack"})',
                    legend="repository {{repository}}",
                ),
            ),
            thresholds=Thresholds(warning=1800, critical=3600),
            empty=NO_DRILL,
        ),
        Panel(
            title="Transactions at risk (RPO)",
            description="Age of the oldest transaction that was not archived when the last drill began, by repository.",
            unit="seconds",
            queries=(
                Query(
                    expression='max by (repository) (observatory_restore_drill_rpo_seconds{stack="$stack"})',
                    legend="repository {{repository}}",
                ),
            ),
            thresholds=Thresholds(warning=120, critical=300),
            empty=NO_DRILL,
        ),
    ),
)

BACKUPS = Dashboard(
    name="backups",
    title="Storage: backups",
    description="Backups, the WAL archive, and the drills that restore them.",
    sections=(BACKUPS_MADE, ARCHIVE, PROOF),
)
