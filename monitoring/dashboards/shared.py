"""Panels that several dashboards show."""

from __future__ import annotations

from monitoring import thresholds
from monitoring.dashboards.model import Panel, Query, Thresholds

ALERTED = thresholds.Thresholds()
"""The thresholds of alerts where a stack does not set its own."""

UP = {0.0: "down", 1.0: "up"}
DOWN = Thresholds(critical=1, falling=True)

READ_ONLY = Panel(
    title="Read-only by default",
    description="Whether new transactions may only read. Each write fails then.",
    unit="state",
    states={0.0: "writes", 1.0: "read-only"},
    kind="stat",
    width=4,
    queries=(
        Query(
            expression='max by (stack) (pg_settings_default_transaction_read_only{stack="$stack"})',
            legend="PostgreSQL",
            instant=True,
        ),
    ),
    thresholds=Thresholds(critical=1),
    alerts=("StorageDatabaseReadOnly",),
)
PRIMARIES = Panel(
    title="Primaries",
    description="Nodes that accept writes. It is always one: with none writes fail, with two they diverge.",
    unit="count",
    kind="stat",
    width=4,
    queries=(Query(expression='sum(1 - pg_replication_is_replica{stack="$stack"})', legend="primaries", instant=True),),
    thresholds=DOWN,
    alerts=("StoragePrimaryCountWrong",),
)
INACTIVE_SLOTS = Panel(
    title="Inactive replication slots",
    description="Slots whose replica is not connected. PostgreSQL keeps WAL for it until the disk is full.",
    unit="count",
    kind="stat",
    width=4,
    queries=(
        Query(
            expression=(
                'sum by (stack) (1 - pg_replication_slot_slot_is_active{stack="$stack"}) '
                'or 0 * max by (stack) (pg_up{stack="$stack"})'
            ),
            legend="slots",
            instant=True,
        ),
    ),
    thresholds=Thresholds(warning=1),
    alerts=("StorageReplicaDisconnected",),
)
AVAILABLE_DISK = Panel(
    title="Available disk",
    description="Share of the filesystem with the data that is available. On a full disk PostgreSQL stops.",
    unit="ratio",
    width=8,
    queries=(
        Query(
            expression='node_filesystem_avail_bytes{stack="$stack"} / node_filesystem_size_bytes{stack="$stack"}',
            legend="{{mountpoint}}",
        ),
    ),
    thresholds=Thresholds(
        warning=ALERTED.disk_warning_percent / 100, critical=ALERTED.disk_critical_percent / 100, falling=True
    ),
    alerts=("StorageDiskCritical", "StorageDiskWarning", "StorageDiskFullIn4Days"),
)
BACKUP_AGE = Panel(
    title="Age of the newest backup",
    description="Time since the newest sound backup ended, by repository. By default one is made each day.",
    unit="seconds",
    width=8,
    queries=(
        Query(
            expression=(
                'time() - max by (repository) (observatory_backup_last_completion_timestamp_seconds{stack="$stack"})'
            ),
            legend="repository {{repository}}",
        ),
    ),
    thresholds=Thresholds(warning=90_000, critical=93_600),
    alerts=("StorageBackupStale",),
)
COLLECTOR_QUERIES = Panel(
    title="Queries of the collector",
    description="Whether each query of the collector succeeded. Alerts on a failed query's values cannot fire.",
    unit="state",
    states={0.0: "failed", 1.0: "succeeded"},
    kind="stat",
    width=12,
    queries=(
        Query(
            expression='min by (query) (storage_collector_success{stack="$stack"})', legend="{{query}}", instant=True
        ),
    ),
    thresholds=Thresholds(critical=1, falling=True),
    alerts=("StorageCollectorQueryFailed",),
)
