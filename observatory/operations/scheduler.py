"""The jobs of the host: run them at their times, run one now, say how they stand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from observatory.nodes.host_jobs import HostJob, host_jobs
from observatory.operations.bootstrap import OperationError
from observatory.scheduling import runner
from observatory.scheduling.records import JobRecord, RecordStore
from observatory.scheduling.scheduler_process import scheduler_ready
from observatory.settings import load_file
from observatory.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """A job, what became of its last run, and when its next is due: None where no scheduler lives."""

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
    """Return how the jobs of a stack stand."""
    from observatory.scheduling.scheduler import next_run  # noqa: PLC0415 - APScheduler only where it is used

    store, alive = RecordStore(sandbox=workspace.sandbox), scheduler_ready(workspace.sandbox)
    found = []
    for job in host_jobs(load_file(workspace.config_file)):
        record = store.read(job.name)
        found.append(JobStatus(job=job, record=record, next_run=next_run(job, record) if alive else None))
    return found


def run_job(workspace: Workspace, name: str) -> JobRecord:
    """Run a job now and return its record; see `observatory.scheduling.runner.run_job` for what it raises."""
    _refuse_unborn(workspace)
    return runner.run_job(workspace, name)


def run_scheduler(workspace: Workspace) -> None:
    """Run the jobs at their times and take alerts that roll back, until SIGTERM.

    See `observatory.scheduling.scheduler.run_scheduler` for what it raises.
    """
    from observatory.operations.late_rollback import take_alerts  # noqa: PLC0415 - only where it is used
    from observatory.scheduling.scheduler import run_scheduler as run  # noqa: PLC0415

    _refuse_unborn(workspace)
    run(workspace, lambda notification: take_alerts(workspace, notification))


def _refuse_unborn(workspace: Workspace) -> None:
    if not workspace.home.is_dir():
        raise OperationError(f"the stack {workspace.stack!r} does not exist yet; `observatory up` makes it")
