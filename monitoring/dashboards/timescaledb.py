"""TimescaleDB's jobs by their results, and the collector that reads them.

On the Apache edition the values are those of the scheduled refresh and retention that stand in for its policies.
"""

from __future__ import annotations

from monitoring.dashboards.model import Dashboard, Panel, Query, Section, Thresholds
from monitoring.dashboards.shared import ALERTED, COLLECTOR_QUERIES

JOBS = Section(
    title="Jobs",
    panels=(
        Panel(
            title="Failed jobs",
            description="Jobs whose last run failed.",
            unit="state",
            states={0.0: "succeeded", 1.0: "failed"},
            kind="stat",
            width=12,
            queries=(
                Query(
                    expression=(
                        "max by (job_id, application_name, hypertable) "
                        '(timescaledb_job_last_run_failed{stack="$stack"})'
                    ),
                    legend="{{application_name}} {{hypertable}}",
                    instant=True,
                ),
            ),
            thresholds=Thresholds(warning=1),
            alerts=("StorageJobFailed",),
        ),
        Panel(
            title="Overdue jobs",
            description="Time since a job should have run; 0 for a job that is in time.",
            unit="seconds",
            width=12,
            queries=(
                Query(
                    expression=(
                        "max by (job_id, application_name, hypertable) "
                        '(timescaledb_job_overdue_seconds{stack="$stack"})'
                    ),
                    legend="{{application_name}} {{hypertable}}",
                ),
            ),
            thresholds=Thresholds(warning=ALERTED.job_overdue_seconds, critical=86_400),
            alerts=("StorageJobFailed",),
        ),
    ),
)

RESULTS = Section(
    title="Results",
    panels=(
        Panel(
            title="Overdue refreshes",
            description="Time since a refresh of each continuous aggregate has been due; 0 for one that is in time.",
            unit="seconds",
            width=12,
            queries=(
                Query(
                    expression='max by (aggregate) (timescaledb_aggregate_lag_seconds{stack="$stack"})',
                    legend="{{aggregate}}",
                ),
            ),
            thresholds=Thresholds(warning=ALERTED.aggregate_lag_seconds, critical=86_400),
            alerts=("StorageAggregateStale",),
        ),
        Panel(
            title="Overdue chunks",
            description="Chunks that the policy of a hypertable should have compressed, or removed, and did not.",
            unit="count",
            width=12,
            queries=(
                Query(
                    expression='max by (hypertable, policy) (timescaledb_chunks_overdue_compression{stack="$stack"})',
                    legend="{{hypertable}} {{policy}}",
                ),
            ),
            thresholds=Thresholds(warning=ALERTED.compression_backlog_chunks + 1, critical=20),
            alerts=("StorageCompressionBacklog",),
        ),
    ),
)

COLLECTOR = Section(
    title="Collector",
    panels=(
        COLLECTOR_QUERIES,
        Panel(
            title="Duration of the collector's queries",
            description="How long each query of the collector took.",
            unit="seconds",
            width=12,
            queries=(
                Query(
                    expression='max by (query) (storage_collector_duration_seconds{stack="$stack"})',
                    legend="{{query}}",
                ),
            ),
            thresholds=Thresholds(warning=1, critical=4),
        ),
    ),
)

TIMESCALEDB = Dashboard(
    name="timescaledb",
    title="Storage: TimescaleDB",
    description="Jobs, continuous aggregates and compression of TimescaleDB, by their results.",
    sections=(JOBS, RESULTS, COLLECTOR),
)
