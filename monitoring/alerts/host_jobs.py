"""Alerts on the jobs of the host: they start, and they succeed.

node_exporter reads their metrics from files, which outlive the process that wrote them. A failed job therefore reports
its failure until it succeeds, and the heartbeat of a stopped scheduler grows old.
"""

from __future__ import annotations

from monitoring.alerts import escalation
from monitoring.alerts.scenarios import BRIDGE, gauge
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step

MAX_HEARTBEAT_AGE_S = 120  # the scheduler writes a heartbeat every 15 s


def _job_failed(scope: Scope) -> str:
    return f"max by (stack, name) (last_over_time({scope.select('observatory_job_failed')}[{BRIDGE}])) == 1"


def _scheduler_down(scope: Scope) -> str:
    """Return an expression for the age of the heartbeat in seconds; systemd's timers on AWS have no such series."""
    heartbeat = scope.select("observatory_scheduler_heartbeat_timestamp_seconds")
    return f"time() - max by (stack) (last_over_time({heartbeat}[{BRIDGE}])) > {MAX_HEARTBEAT_AGE_S}"


_HEARTBEAT = 'observatory_scheduler_heartbeat_timestamp_seconds{stack="test",job="node"}'

JOB_FAILED = Alert(
    name="ObservatoryJobFailed",
    expression=_job_failed,
    severity="warning",
    component="monitoring",
    category="platform",
    summary="A job of the host failed or took too long",
    description="The last run of {{ $labels.name }} failed (value {{ $value }}).",
    runbook=Runbook(
        meaning="A job, such as a backup or the rotation of logs, failed or exceeded its timeout.",
        impact="The work of the job was not done. After a failed backup, a restore starts from an older one.",
        diagnosis=(
            Step("`observatory scheduler list` shows the job, its last start and its last success."),
            Step("`log/job-<name>.log` in the stack's home has its output."),
        ),
        remedy=(
            Step(
                "Remove the cause, then run the job again. The alert ends when it succeeds.",
                ("observatory scheduler run {name}",),
            ),
            Step("If the job needs more time, increase its timeout in `observatory/nodes/host_jobs.py`."),
        ),
        escalation=escalation.PLATFORM,
    ),
    fault="Remove the backup repository and run the backup.",
    scenarios=(
        *gauge(
            'observatory_job_failed{stack="test",job="node",name="backup-full"}',
            at=0,
            beyond=1,
            labels={"name": "backup-full"},
            description="The last run of backup-full failed (value 1).",
            others={'observatory_job_failed{stack="test",job="node",name="log-rotation"}': "0x200"},
        ),
        Scenario(
            name="a backup fails",
            series={
                'observatory_job_failed{stack="test",job="node",name="backup-full"}': "0x5 1x30 0x30",
                'observatory_job_failed{stack="test",job="node",name="log-rotation"}': "0x65",
            },
            quiet=("20s", "4m"),
            fires=(
                Firing(
                    at="1m",
                    labels={"name": "backup-full"},
                    description="The last run of backup-full failed (value 1).",
                ),
            ),
        ),
    ),
)

SCHEDULER_DOWN = Alert(
    name="ObservatorySchedulerDown",
    expression=_scheduler_down,
    pending="1m",
    severity="warning",
    component="monitoring",
    category="platform",
    summary="The scheduler of the host's jobs is gone or hangs",
    description="The scheduler has not said for {{ $value | humanizeDuration }} that it lives.",
    runbook=Runbook(
        meaning="`observatory scheduler` starts the jobs and writes a heartbeat every 15 s. It has stopped or hangs.",
        impact="No backups are made and no logs are rotated until it runs again. A missed job then starts once.",
        diagnosis=(
            Step("`observatory status`: check whether `scheduler` runs."),
            Step("`log/scheduler.log` in the stack's home has the reason why it ended."),
            Step("The watcher starts it within seconds. `log/watcher.log` has the reason if it could not."),
        ),
        remedy=(Step("Start both:", ("observatory up",)),),
        escalation=escalation.PLATFORM,
    ),
    fault="Kill the scheduler and the watcher at once.",
    scenarios=(
        Scenario(
            name="the scheduler stops for four minutes",
            series={_HEARTBEAT: "0+5x12 60x40 300x40"},
            quiet=("240s", "270s"),
            fires=(
                Firing(at="245s", description="The scheduler has not said for 3m 5s that it lives."),
                Firing(at="265s", description="The scheduler has not said for 3m 25s that it lives."),
            ),
        ),
        Scenario(
            name="scrapes fail after the scheduler has stopped",
            series={_HEARTBEAT: "0x59 stale _x60"},
            quiet=("365s",),
            fires=(Firing(at="350s", description="The scheduler has not said for 5m 50s that it lives."),),
        ),
        Scenario(
            name="the scheduler stops after a minute",
            series={
                'observatory_scheduler_heartbeat_timestamp_seconds{stack="test",job="node"}': "0+5x12 60x60",
            },
            quiet=("1m", "3m", "4m"),
            fires=(Firing(at="4m10s", description="The scheduler has not said for 3m 10s that it lives."),),
        ),
        Scenario(
            name="the scheduler runs",
            series={'observatory_scheduler_heartbeat_timestamp_seconds{stack="test",job="node"}': "0+5x72"},
            quiet=("6m",),
        ),
    ),
)

HOST_JOBS = (JOB_FAILED, SCHEDULER_DOWN)
