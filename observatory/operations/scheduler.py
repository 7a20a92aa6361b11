"""The host jobs of a stack: running them at their times, running one now, and their status."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from observatory.engines.stack_settings import load_settings
from observatory.nodes.host_jobs import HostJob, host_jobs
from observatory.platforms import open_platform
from observatory.platforms.errors import StackNotUpError
from observatory.platforms.platform import check_supported
from observatory.scheduling import runner
from observatory.scheduling.records import JobRecord, RecordStore
from observatory.scheduling.scheduler_process import scheduler_ready
from observatory.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """A job, the record of its last run, and the time of its next run: None where no scheduler runs."""

    job: HostJob
    record: JobRecord
    next_run: datetime | None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a plain mapping, times in ISO 8601."""
        return {
            **self.record.model_dump(mode="json"),
            "description": self.job.description,
            "cron": self.job.cron,
            "timeout": self.job.timeout,
            "next_run": self.next_run.isoformat() if self.next_run else None,
        }


def jobs(workspace: Workspace) -> list[JobStatus]:
    """Return the status of a stack's jobs."""
    from observatory.scheduling.due import next_run  # noqa: PLC0415 - APScheduler only where it is used

    store, running = RecordStore(sandbox=workspace.sandbox), scheduler_ready(workspace.sandbox)
    found = []
    for job in host_jobs(load_settings(workspace)):
        record = store.read(job.name)
        found.append(JobStatus(job=job, record=record, next_run=next_run(job, record) if running else None))
    return found


def run_job(workspace: Workspace, name: str) -> JobRecord:
    """Run a job now and return its record.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack was never up, or its platform is not supported.
        UnknownJobError, JobRunningError, JobFailedError: see `observatory.scheduling.runner.run_job`.
    """
    _check_created(workspace)
    return runner.run_job(workspace, name)


def run_scheduler(workspace: Workspace) -> None:
    """Run the jobs at their times and receive alerts that roll back, until SIGTERM.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack was never up, or its platform is not supported.
        SchedulerRunningError: the stack has a scheduler already.
    """
    from observatory.operations.late_rollback import take_alerts  # noqa: PLC0415 - only in the scheduler
    from observatory.scheduling.scheduler import run_scheduler as run  # noqa: PLC0415

    _check_created(workspace)
    run(workspace, lambda notification: take_alerts(workspace, notification))


def _check_created(workspace: Workspace) -> None:
    check_supported(open_platform(workspace), "scheduler")
    if not workspace.home.is_dir():
        raise StackNotUpError(workspace.stack)
