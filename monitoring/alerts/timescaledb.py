"""Alerts on the jobs of TimescaleDB, and of pg_cron, which does their work on the Apache edition.

A job can stop without a recorded failure, so its results are measured too: chunks that wait, aggregates that are late.
"""

from __future__ import annotations

from monitoring.alerts import escalation
from monitoring.alerts.commands import logs, query, superuser
from monitoring.alerts.scenarios import BRIDGE, gauge
from monitoring.model import Alert, Runbook, Scope, Step

ACTIVATE = "UPDATE cron.job SET active = true WHERE NOT active"


def _job_failed(scope: Scope) -> str:
    """Return an expression whose label `state` says what is wrong with the job."""
    labels = "stack, job_id, application_name"
    failed = scope.select("timescaledb_job_last_run_failed")
    overdue = scope.select("timescaledb_job_overdue_seconds")
    limit = scope.thresholds.job_overdue_seconds
    conditions = {
        "has failed": f"max by ({labels}) (last_over_time({failed}[{BRIDGE}])) == 1",
        "has not run": f"max by ({labels}) (last_over_time({overdue}[{BRIDGE}])) > {limit}",
    }
    return "\nor ".join(
        f'label_replace({condition}, "state", "{state}", "", "")' for state, condition in conditions.items()
    )


def _compression_backlog(scope: Scope) -> str:
    chunks = scope.select("timescaledb_chunks_overdue_compression")
    limit = scope.thresholds.compression_backlog_chunks
    return f"max by (stack, hypertable, policy) (last_over_time({chunks}[{BRIDGE}])) > {limit}"


def _aggregate_stale(scope: Scope) -> str:
    lag = scope.select("timescaledb_aggregate_lag_seconds")
    return f"max by (stack, aggregate) (last_over_time({lag}[{BRIDGE}])) > {scope.thresholds.aggregate_lag_seconds}"


_COMMUNITY_JOBS = (
    "SELECT j.job_id, j.proc_name, j.hypertable_name, j.scheduled, s.last_run_status, s.next_start FROM "
    "timescaledb_information.jobs j LEFT JOIN timescaledb_information.job_stats s USING (job_id) WHERE j.job_id >= "
    "1000"
)
_JOBS = (
    Step("Community edition: list the jobs with their last result.", (query(_COMMUNITY_JOBS),)),
    Step(
        "Apache edition: the job runs in pg_cron, and its errors are in the log.",
        (query("SELECT jobid, jobname, schedule, active FROM cron.job"), logs("patroni")),
    ),
)
# As superuser: only the schema's owner may drop chunks.
_RETENTION = (
    "observatory exec postgres-exporter -- sh -c 'echo \"SELECT command FROM observatory.jobs WHERE name LIKE "
    '\\$\\$retention of %\\$\\$ \\\\gexec" | psql "$DATA_SOURCE_NAME user=postgres application_name=psql"\''
)
_ACTIVATE = Step("Apache edition: activate the jobs of pg_cron again.", (superuser(ACTIVATE),))
_JOB_LABELS = {"job_id": "1001", "application_name": "Compression"}
_JOB = 'timescaledb_job_{{}}{{{{stack="test",job="collector",job_id="{}",application_name="{}",hypertable="h"}}}}'
_FIRST, _SECOND = _JOB.format("1001", "Compression"), _JOB.format("1002", "Retention")
_SOUND = {
    _SECOND.format("last_run_failed"): "0x300",
    _SECOND.format("overdue_seconds"): "0x300",
}

JOB_FAILED = Alert(
    name="StorageJobFailed",
    expression=_job_failed,
    pending="30s",
    severity="warning",
    component="database",
    category="timescaledb",
    summary="A job of the database fails or does not run",
    description="Job {{ $labels.job_id }} ({{ $labels.application_name }}) {{ $labels.state }} (value {{ $value }}).",
    runbook=Runbook(
        meaning="The last run of a job failed, or its next run is late by more than `alerts.job_overdue_seconds`.",
        impact=(
            "Chunks are not compressed or removed, or aggregates are old. The disk fills, and dashboards show old "
            "values."
        ),
        diagnosis=_JOBS,
        remedy=(
            Step(
                "Remove the cause that the log names. Community edition: schedule the job again, and run it now.",
                (
                    query(
                        "SELECT alter_job(job_id, scheduled => true, next_start => now()) FROM "
                        "timescaledb_information.jobs WHERE job_id = {job_id} AND job_id >= 1000"
                    ),
                ),
            ),
            Step(
                "Apache edition: pg_cron runs the job by its schedule. The alert ends a period and a minute after the "
                "last failure."
            ),
            Step(
                "If all jobs are late: `timescaledb.max_background_workers` is too low, or the scheduler has "
                "ended. `observatory verify --comprehensive` names what is missing."
            ),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Add a job that fails.",
    scenarios=(
        *gauge(
            _FIRST.format("last_run_failed"),
            at=0,
            beyond=1,
            pending=30,
            labels={**_JOB_LABELS, "state": "has failed"},
            description="Job 1001 (Compression) has failed (value 1).",
            others={**_SOUND, _FIRST.format("overdue_seconds"): "0x300"},
        ),
        *gauge(
            _FIRST.format("overdue_seconds"),
            at=900,
            beyond=930,
            pending=30,
            labels={**_JOB_LABELS, "state": "has not run"},
            description="Job 1001 (Compression) has not run (value 930).",
            others={**_SOUND, _FIRST.format("last_run_failed"): "0x300"},
        ),
    ),
)

_CHUNKS = 'timescaledb_chunks_overdue_compression{{stack="test",job="collector",hypertable="{}",policy="{}"}}'

COMPRESSION_BACKLOG = Alert(
    name="StorageCompressionBacklog",
    expression=_compression_backlog,
    pending="1m",
    severity="warning",
    component="database",
    category="timescaledb",
    summary="Chunks are older than their policy allows",
    description="{{ $value }} chunks of {{ $labels.hypertable }} wait for the policy {{ $labels.policy }}.",
    runbook=Runbook(
        meaning=(
            "More than `alerts.compression_backlog_chunks` chunks should have been compressed, on the Apache "
            "edition removed, and were not."
        ),
        impact="The database needs a multiple of the space, and the disk fills. Queries of old data are slower.",
        diagnosis=_JOBS,
        remedy=(
            Step(
                "Community edition: schedule the policy of the hypertable again, and run it now.",
                (
                    query(
                        "SELECT alter_job(job_id, scheduled => true, next_start => now()) FROM "
                        "timescaledb_information.jobs WHERE proc_name IN ('policy_compression', "
                        "'policy_retention')"
                    ),
                ),
            ),
            _ACTIVATE,
            Step("They run once an hour. This runs them now:", (_RETENTION,)),
            Step(
                "If it runs and does not finish: check whether StorageLongTransaction or StorageLockWaits "
                "fires. Its locks are then not granted."
            ),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Pause the policy.",
    scenarios=gauge(
        _CHUNKS.format("llm_traces", "compression"),
        at=2,
        beyond=2.05,
        pending=60,
        labels={"hypertable": "llm_traces", "policy": "compression"},
        description="2.05 chunks of llm_traces wait for the policy compression.",
        others={_CHUNKS.format("llm_traces", "retention"): "0x300", _CHUNKS.format("spans", "compression"): "1x300"},
    ),
)

_LAG = 'timescaledb_aggregate_lag_seconds{{stack="test",job="collector",aggregate="{}"}}'

AGGREGATE_STALE = Alert(
    name="StorageAggregateStale",
    expression=_aggregate_stale,
    pending="30s",
    severity="warning",
    component="database",
    category="timescaledb",
    summary="An aggregate is not refreshed",
    description="The refresh of {{ $labels.aggregate }} is late by {{ $value | humanizeDuration }}.",
    runbook=Runbook(
        meaning=(
            "An aggregate has not the rows that its schedule promises, for longer than `alerts.aggregate_lag_seconds`."
        ),
        impact="Dashboards and the service's metrics queries return old values. The rows themselves are stored.",
        diagnosis=_JOBS,
        remedy=(
            Step(
                "Community edition: schedule the refresh again, and run it now.",
                (
                    query(
                        "SELECT alter_job(job_id, scheduled => true, next_start => now()) FROM "
                        "timescaledb_information.jobs WHERE proc_name = 'policy_refresh_continuous_aggregate'"
                    ),
                ),
            ),
            _ACTIVATE,
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Pause the refresh.",
    scenarios=gauge(
        _LAG.format("llm_metrics_1min"),
        at=900,
        beyond=930,
        pending=30,
        labels={"aggregate": "llm_metrics_1min"},
        description="The refresh of llm_metrics_1min is late by 15m 30s.",
        others={_LAG.format("llm_metrics_1hour"): "0x200"},
    ),
)

TIMESCALEDB = (JOB_FAILED, COMPRESSION_BACKLOG, AGGREGATE_STALE)
