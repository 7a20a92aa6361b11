"""The overview: whether the stack works, what it does, and what it has left."""

from __future__ import annotations

from monitoring.dashboards.expressions import API_REQUESTS, rate
from monitoring.dashboards.model import Dashboard, Panel, Query, Section, Thresholds, Unbounded
from monitoring.dashboards.shared import AVAILABLE_DISK, BACKUP_AGE, DOWN, INACTIVE_SLOTS, PRIMARIES, READ_ONLY, UP

DAY_S = 86_400
FAILED_NOTIFICATIONS = 'alertmanager_notifications_failed_total{stack="$stack"}'


def _up(title: str, metric: str, description: str, *alerts: str) -> Panel:
    return Panel(
        title=title,
        description=description,
        unit="state",
        states=UP,
        kind="stat",
        width=4,
        queries=(Query(expression=f'min by (stack) ({metric}{{stack="$stack"}})', legend=title, instant=True),),
        thresholds=DOWN,
        alerts=alerts,
    )


STATE = Section(
    title="State",
    panels=(
        Panel(
            title="Firing alerts",
            description="Alerts that fire now. Each has a runbook of its name. The Watchdog always fires.",
            unit="count",
            kind="table",
            columns=("alertname", "severity", "component", "category", "fleet", "instance"),
            width=24,
            queries=(
                Query(
                    expression=('ALERTS{stack="$stack",alertstate="firing",alertname!~"Watchdog|InfoInhibitor"}'),
                    legend="{{alertname}}",
                    instant=True,
                ),
            ),
            thresholds=Thresholds(critical=1),
            alerts=("StorageWarningUnattended", "Watchdog", "InfoInhibitor"),
            empty="No alert fires.",
        ),
        _up(
            "PostgreSQL",
            "pg_up",
            "Whether the exporter can connect to PostgreSQL. Without it all writes and reads fail.",
            "StorageDatabaseDown",
        ),
        _up(
            "pgBouncer",
            "pgbouncer_up",
            "Whether the pooler answers. It is up while PostgreSQL is down: see the panel PostgreSQL.",
        ),
        _up(
            "Cache",
            "redis_up",
            "Whether the cache answers. Without it reads go to the database, and each instance limits rates by itself.",
            "StorageCacheDown",
        ),
        READ_ONLY,
        PRIMARIES,
        INACTIVE_SLOTS,
        Panel(
            title="Ready instances",
            description=(
                "Instances of each fleet that pass the balancer's health checks. A fleet with traffic and without a "
                "ready instance answers no request."
            ),
            unit="count",
            kind="stat",
            width=12,
            platforms=("local",),
            queries=(
                Query(
                    expression=(
                        'sum by (fleet) (haproxy_server_status{stack="$stack",state="UP",fleet=~".+",server=~".+"})'
                    ),
                    legend="{{fleet}}",
                    instant=True,
                ),
            ),
            thresholds=DOWN,
            alerts=("StorageServiceDown", "StorageInstanceDown"),
        ),
        Panel(
            title="Instances that are scraped",
            description=(
                "Instances of each fleet whose metrics Prometheus can read. The load balancer's own checks are in "
                "CloudWatch."
            ),
            unit="count",
            kind="stat",
            width=12,
            platforms=("aws",),
            queries=(
                Query(expression='sum by (fleet) (up{stack="$stack",job="storage"})', legend="{{fleet}}", instant=True),
            ),
            thresholds=DOWN,
            alerts=("StorageServiceDown", "StorageInstanceDown"),
        ),
        Panel(
            title="Targets that do not answer",
            description=(
                "Exporters and daemons that Prometheus cannot scrape. Alerts on their metrics cannot fire meanwhile."
            ),
            unit="count",
            kind="stat",
            width=12,
            queries=(Query(expression='sum(1 - up{stack="$stack"})', legend="targets", instant=True),),
            thresholds=Thresholds(warning=1, critical=2),
            alerts=("StorageExporterDown",),
        ),
    ),
)

WORK = Section(
    title="Work",
    panels=(
        Panel(
            title="Requests",
            description="Requests to the API that the instances of each fleet answered.",
            unit="per second",
            width=8,
            queries=(
                Query(
                    expression=rate(API_REQUESTS, by="fleet"),
                    legend="{{fleet}}",
                ),
            ),
            thresholds=Unbounded(reason="The usual rate depends on the customers."),
            empty="No instance has answered a request yet.",
        ),
        Panel(
            title="Failed writes",
            description=(
                "Share of the batches that could not be stored. Above 1.44 % the error budget of 30 days is used up in "
                "two days."
            ),
            unit="ratio",
            width=8,
            queries=(
                Query(expression='stack_fleet:storage_writes_errors:ratio_rate5m{stack="$stack"}', legend="{{fleet}}"),
            ),
            thresholds=Thresholds(warning=0.006, critical=0.0144),
            alerts=("StorageErrorBudgetFastBurn", "StorageErrorBudgetSlowBurn"),
            empty="No batch was written in the last five minutes.",
        ),
        Panel(
            title="Latency",
            description="95th percentile of the duration of writes and of read queries, over five minutes.",
            unit="seconds",
            width=8,
            queries=(
                Query(
                    expression='stack_fleet:storage_write_duration_seconds:p95_rate5m{stack="$stack"}',
                    legend="{{fleet}} writes",
                ),
                Query(
                    expression='stack_fleet:storage_query_duration_seconds:p95_rate5m{stack="$stack"}',
                    legend="{{fleet}} queries",
                ),
            ),
            thresholds=Thresholds(warning=1, critical=5),
            alerts=("StorageWriteLatencyHigh", "StorageQueryLatencyHigh"),
            empty="No batch was written and no query ran in the last five minutes.",
        ),
    ),
)

RESERVES = Section(
    title="Reserves",
    panels=(
        AVAILABLE_DISK,
        Panel(
            title="Available memory",
            description="Share of the machine's memory that is available to new processes.",
            unit="ratio",
            width=8,
            queries=(
                Query(
                    expression=(
                        'node_memory_MemAvailable_bytes{stack="$stack"} / node_memory_MemTotal_bytes{stack="$stack"}'
                    ),
                    legend="{{instance}}",
                ),
            ),
            thresholds=Thresholds(warning=0.1, critical=0.05, falling=True),
            alerts=("StorageMemoryPressure",),
        ),
        BACKUP_AGE,
    ),
)

PLATFORM = Section(
    title="Platform",
    panels=(
        Panel(
            title="Failed host jobs",
            description="Jobs of the host whose last run failed, such as backups, checks and log rotation.",
            unit="count",
            width=8,
            kind="stat",
            platforms=("local",),
            queries=(Query(expression='sum(observatory_job_failed{stack="$stack"})', legend="jobs", instant=True),),
            thresholds=Thresholds(warning=1),
            alerts=("ObservatoryJobFailed",),
        ),
        Panel(
            title="Heartbeats",
            description=(
                "Time since the scheduler and the watcher last wrote their heartbeats. Without the scheduler no backup "
                "is made, without the watcher a dead supervisor stays dead."
            ),
            unit="seconds",
            width=8,
            platforms=("local",),
            queries=(
                Query(
                    expression=(
                        'time() - max by (stack) (observatory_scheduler_heartbeat_timestamp_seconds{stack="$stack"})'
                    ),
                    legend="scheduler",
                ),
                Query(
                    expression=(
                        'time() - max by (stack) (observatory_watcher_heartbeat_timestamp_seconds{stack="$stack"})'
                    ),
                    legend="watcher",
                ),
            ),
            thresholds=Thresholds(warning=30, critical=120),
            alerts=("ObservatorySchedulerDown", "StorageSupervisorDown"),
        ),
        Panel(
            title="Certificates",
            description=(
                "Time until the next certificate of a server expires. They are renewed in their last 30 days, so a "
                "value below 21 days means that renewals fail."
            ),
            unit="seconds",
            width=8,
            kind="stat",
            platforms=("local",),
            queries=(
                Query(
                    expression=(
                        'min(observatory_certificate_expiry_timestamp_seconds{stack="$stack",kind="server"}) - time()'
                    ),
                    legend="next",
                    instant=True,
                ),
            ),
            thresholds=Thresholds(warning=21 * DAY_S, critical=7 * DAY_S, falling=True),
            alerts=("StorageCertificateExpiring", "StorageCertificateNearlyExpired"),
        ),
        Panel(
            title="Rule evaluation",
            description=(
                "Duration of the last evaluation of each group of rules. Failures of an evaluation are in "
                "`/rules` of Prometheus."
            ),
            unit="seconds",
            width=12,
            platforms=("local",),
            queries=(
                Query(
                    expression='sum by (stack) (prometheus_rule_group_last_duration_seconds{stack="$stack"})',
                    legend="all groups",
                ),
            ),
            thresholds=Thresholds(warning=0.05, critical=1),
            alerts=("StorageRuleEvaluationFailing",),
        ),
        Panel(
            title="Undelivered notifications",
            description=(
                "Notifications that Prometheus could not hand to Alertmanager, or Alertmanager to a receiver. A page "
                "may be among them."
            ),
            unit="per second",
            width=12,
            platforms=("local",),
            queries=(
                Query(
                    expression='sum by (stack) (rate(prometheus_notifications_errors_total{stack="$stack"}[$window]))',
                    legend="to Alertmanager",
                ),
                Query(
                    expression=rate(FAILED_NOTIFICATIONS, by="stack"),
                    legend="to receivers",
                ),
            ),
            thresholds=Thresholds(warning=0.001),
            alerts=("StorageNotificationsFailing", "StorageConfigReloadFailed"),
        ),
    ),
)

OVERVIEW = Dashboard(
    name="overview",
    title="Storage: overview",
    description="Whether the stack works, what it does, and what it has left.",
    sections=(STATE, WORK, RESERVES, PLATFORM),
)
