"""Alerts that look ahead: the disk will be full in days, the database grows faster than usual.

Both need a history. Without it an hour of load after the start of a stack would be taken for a trend.
"""

from __future__ import annotations

from monitoring.alerts import escalation
from monitoring.alerts.commands import query
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step

DAY_S = 86_400
AHEAD_DAYS = 4
FREE_SHARE = 0.4  # with more, a burst or the saw-tooth of retention is no reason to act
GROWTH_BYTES = 1_000_000_000  # a small database doubles with its first rows


def _disk_full(scope: Scope) -> str:
    """Return an expression for the share of the filesystem that is available."""
    available = scope.select("node_filesystem_avail_bytes")
    size = scope.select("node_filesystem_size_bytes")
    on = "on (stack, instance, mountpoint)"
    return (
        f"{available} / {on} {size} < {FREE_SHARE}\n"
        f"and {on} predict_linear({available}[6h], {AHEAD_DAYS * DAY_S}) < 0\n"
        f"and {on} {available} offset 5h"
    )


def _growth(scope: Scope) -> str:
    """Return an expression for the growth of a database in a day, as a share of its size."""
    size = scope.select("pg_database_size_bytes")
    now, before = f"max by (stack, datname) ({size})", f"max by (stack, datname) ({size} offset 1d)"
    grown = f"({now} - on (stack, datname) {before})"
    limit = scope.thresholds.database_growth_percent / 100
    return f"({grown} > {GROWTH_BYTES})\n/ on (stack, datname) {before} > {limit:g}"


_FILESYSTEM = 'node_filesystem_{}_bytes{{stack="test",job="node",instance="{}",mountpoint="{}"}}'
_OTHERS = {
    _FILESYSTEM.format("size", "one", "/backup"): "1000x600",
    _FILESYSTEM.format("avail", "one", "/backup"): "900x600",
    _FILESYSTEM.format("size", "two", "/"): "1000x600",
    _FILESYSTEM.format("avail", "two", "/"): "900x600",
}
_ROOT = {"instance": "one", "mountpoint": "/"}


def _disk(available: str, *, size: str = "1000x600") -> dict[str, str]:
    return {
        _FILESYSTEM.format("size", "one", "/"): size,
        _FILESYSTEM.format("avail", "one", "/"): available,
        **_OTHERS,
    }


def _filling(at: str, share: str) -> Firing:
    return Firing(
        at=at, labels=_ROOT, description=f"{share} of / on one is available, and at this rate none in 4 days."
    )


DISK_FULL_IN_4_DAYS = Alert(
    name="StorageDiskFullIn4Days",
    expression=_disk_full,
    pending="10m",
    severity="warning",
    component="database",
    category="capacity",
    summary="The disk will be full in four days",
    description=(
        "{{ $value | humanizePercentage }} of {{ $labels.mountpoint }} on {{ $labels.instance }} is available, "
        "and at this rate none in 4 days."
    ),
    runbook=Runbook(
        meaning=(
            "Less than 40 % of the filesystem is available, and the trend of the last six hours ends at 0 within "
            "four days."
        ),
        impact="None yet. On a full disk PostgreSQL stops: see StorageDiskCritical.",
        diagnosis=(
            Step(
                "Find what has grown.",
                (
                    query(
                        "SELECT hypertable_schema, hypertable_name, "
                        "pg_size_pretty(hypertable_size(format('%I.%I', hypertable_schema, "
                        "hypertable_name)::regclass)) FROM timescaledb_information.hypertables"
                    ),
                    "observatory status",
                ),
            ),
            Step(
                "Check whether StorageCompressionBacklog, StorageWalArchiveFailing or StorageReplicaDisconnected fires."
            ),
        ),
        remedy=(
            Step(
                "Lower `backups.retention_days` in the stack's settings, then run `observatory up`: backups expire "
                "after the next one.",
                ("observatory up",),
            ),
            Step("[Drop old traces](../schema.md#retention)."),
            Step("Enlarge the disk. On AWS: the size of the volume in the stack's settings."),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Fill a filesystem steadily.",
    scenarios=(
        Scenario(
            name="the share that is free crosses the threshold",
            interval="5m",
            series=_disk("440-0.5x200"),  # 400 after 400 min
            quiet=("6h40m", "6h50m"),
            fires=(_filling("6h55m", "39.85%"), _filling("10h", "38%")),
        ),
        Scenario(
            name="full in 3.9 days",
            interval="5m",
            series=_disk("362.7-0.3x200"),
            fires=(_filling("6h40m", "33.87%"),),
        ),
        Scenario(
            name="full in a little more than four days",
            interval="5m",
            series=_disk("370.1-0.3x200"),
            quiet=("6h40m",),
        ),
        Scenario(
            name="a full filesystem stays full",
            interval="5m",
            series=_disk("0x100"),
            quiet=("8h",),
        ),
        Scenario(
            name="a history that is too short",
            interval="5m",
            series=_disk("390-2x80"),
            quiet=("4h45m", "5h5m"),
            fires=(_filling("5h10m", "26.6%"),),
        ),
        Scenario(
            name="a filesystem is new, others are not",
            interval="5m",
            series=_disk("_x59 390-2x40"),
            quiet=("8h",),
        ),
        Scenario(
            name="other filesystems fill, and have enough free space",
            interval="5m",
            series={
                **_disk("300x100"),
                _FILESYSTEM.format("avail", "one", "/backup"): "900-1x100",
                _FILESYSTEM.format("avail", "two", "/"): "900-1x100",
            },
            quiet=("8h",),
        ),
        Scenario(
            name="the filesystem is emptied",
            interval="5m",
            series=_disk("390-1x80 300x3 800x80"),
            quiet=("7h5m",),
            fires=(_filling("6h30m", "31.2%"),),
        ),
        Scenario(
            name="a rapid fill follows a long rest",
            interval="5m",
            series=_disk("380x144 380-0.34x100"),
            quiet=("15h20m",),
            fires=(_filling("18h25m", "35.42%"),),
        ),
    ),
)

_SIZE = 'pg_database_size_bytes{{stack="test",job="postgres",instance="one",datname="{}"}}'


def _grown(at: str, share: str) -> Firing:
    return Firing(at=at, labels={"datname": "o"}, description=f"o has grown by {share} in a day.")


DATABASE_GROWTH_HIGH = Alert(
    name="StorageDatabaseGrowthHigh",
    expression=_growth,
    pending="10m",
    severity="info",
    component="database",
    category="capacity",
    summary="The database grows faster than usual",
    description="{{ $labels.datname }} has grown by {{ $value | humanizePercentage }} in a day.",
    runbook=Runbook(
        meaning="A database has grown by more than `alerts.database_growth_percent` and by more than 1 GB in a day.",
        impact="None yet. If it continues, the disk fills, and backups take longer.",
        diagnosis=(
            Step(
                "Find which tables have grown.",
                (
                    query(
                        "SELECT relname, pg_size_pretty(pg_total_relation_size(relid)) FROM "
                        "pg_stat_user_tables ORDER BY pg_total_relation_size(relid) DESC LIMIT 10"
                    ),
                ),
            ),
        ),
        remedy=(
            Step("If the load was planned, no action is necessary: the alert ends within a day."),
            Step("If it remains: plan a larger disk, or [drop old traces](../schema.md#retention)."),
        ),
        escalation=escalation.TICKET,
    ),
    fault="Load many rows.",
    scenarios=(
        Scenario(
            name="the growth is at the threshold, then beyond it",
            interval="5m",
            series={_SIZE.format("o"): "10e9x299 12e9x19 12.05e9x310", _SIZE.format("p"): "10e9x700"},
            quiet=("26h35m", "26h45m", "49h"),
            fires=(_grown("26h50m", "20.5%"), _grown("48h55m", "20.5%")),
        ),
        Scenario(
            name="a small database grows by 1 GB",
            interval="5m",
            series={_SIZE.format("o"): "1e9x300 2e9x20 2.03e9x20", _SIZE.format("p"): "10e9x700"},
            quiet=("26h40m",),
            fires=(_grown("28h", "103%"),),
        ),
        Scenario(
            name="the load lasted an hour",
            interval="5m",
            series={_SIZE.format("o"): "10e9x300 13e9x12 10e9x300", _SIZE.format("p"): "10e9x700"},
            quiet=("25h10m", "26h10m"),
            fires=(_grown("25h15m", "30%"), _grown("26h5m", "30%")),
        ),
    ),
)

CAPACITY = (DISK_FULL_IN_4_DAYS, DATABASE_GROWTH_HIGH)
