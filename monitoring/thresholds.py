"""Thresholds of alerts that operators set for a stack (`alerts` in its settings, which check their ranges).

The ages of backups and restore drills follow from `schedule` in the settings.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The thresholds of a stack.

    Attributes:
        disk_critical_percent: share of a filesystem that is available, below which a page is sent.
        disk_warning_percent: the same for a warning.
        pool_wait_seconds: how long a client waits for a connection of the pooler.
        backends_percent: share of PostgreSQL's connections in use.
        idle_in_transaction_seconds: age of a transaction whose session does nothing.
        statement_seconds: mean duration of a statement that is repeated.
        transaction_seconds: age of a transaction.
        write_latency_seconds: 95th percentile of a write.
        query_latency_seconds: 95th percentile of a read.
        replication_lag_seconds: how far a replica's data is behind.
        job_overdue_seconds: delay of a job of the database.
        compression_backlog_chunks: chunks of a hypertable that its policy should have handled.
        aggregate_lag_seconds: delay of a refresh.
        database_growth_percent: growth of the database in a day.
        auth_failures: failed logins in five minutes.
        backup_age_seconds: age of the newest backup.
        drill_age_seconds: age of the newest state that a restore drill has proven.
    """

    disk_critical_percent: int = 15
    disk_warning_percent: int = 30
    pool_wait_seconds: int = 5
    backends_percent: int = 85
    idle_in_transaction_seconds: int = 120
    statement_seconds: float = 2
    transaction_seconds: int = 600
    write_latency_seconds: float = 1
    query_latency_seconds: float = 1
    replication_lag_seconds: int = 30
    job_overdue_seconds: int = 900
    compression_backlog_chunks: int = 2
    aggregate_lag_seconds: int = 900
    database_growth_percent: int = 20
    auth_failures: int = 10
    backup_age_seconds: int = 93_600
    drill_age_seconds: int = 691_200
