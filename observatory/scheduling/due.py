"""When a scheduled job is due. Of APScheduler it needs the trigger only: `observatory status` shows the times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.triggers.cron import CronTrigger

from observatory.nodes.host_jobs import HostJob
from observatory.scheduling.records import JobRecord, RunResult, now


def trigger(job: HostJob) -> Any:
    """Return APScheduler's trigger of a job."""
    return CronTrigger(**job.calendar.trigger_fields(), timezone=UTC)


def next_run(job: HostJob, record: JobRecord) -> datetime:
    """Return when a job is due according to its record: now or earlier if a run was interrupted or missed."""
    if record.result is RunResult.INTERRUPTED:
        return now()
    since = (record.started or record.known_since) + timedelta(seconds=1)
    due: datetime = trigger(job).get_next_fire_time(None, since)
    return due
