"""Records each scheduled job's last run, and publishes the records as metrics for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from observatory.files import locks
from observatory.nodes.host_jobs import HostJob
from observatory.runtime import Sandbox
from observatory.scheduling.host_process import METRICS, beat, log_file
from observatory.scheduling.scheduler_process import NAME

RECORDS = "/srv/data/jobs"
JOBS_FILE = "jobs.prom"


class RunResult(StrEnum):
    """The state or result of a run. An interrupted run is not a failure; the scheduler runs it once more."""

    NEVER = "never ran"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    INTERRUPTED = "interrupted"

    @property
    def failed(self) -> bool:
        """Whether the run failed, so that an alert fires."""
        return self in (RunResult.FAILED, RunResult.TIMED_OUT)


class JobRecord(BaseModel):
    """A job's last run.

    Attributes:
        known_since: when the job was first scheduled; times are in UTC.
        failing: whether the last run that was not interrupted failed.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str
    known_since: datetime
    result: RunResult = RunResult.NEVER
    started: datetime | None = None
    ended: datetime | None = None
    exit_status: int | None = None
    message: str = ""
    last_success: datetime | None = None
    failing: bool = False

    def begun(self) -> Self:
        """Return the record of a run that begins now."""
        cleared = {"ended": None, "exit_status": None, "message": ""}
        return self.model_copy(update={"result": RunResult.RUNNING, "started": now(), **cleared})

    def finished(self, result: RunResult, *, exit_status: int | None = None, message: str = "") -> Self:
        """Return the record of the run that has ended now."""
        ended = now()
        last_success = ended if result is RunResult.SUCCEEDED else self.last_success
        failing = self.failing if result is RunResult.INTERRUPTED else result.failed
        update = {"result": result, "ended": ended, "exit_status": exit_status, "message": message}
        return self.model_copy(update={**update, "last_success": last_success, "failing": failing})


@dataclass(frozen=True, kw_only=True)
class RecordStore:
    """The records of a stack's jobs, in its home."""

    sandbox: Sandbox

    def lock_file(self, name: str) -> Path:
        """Return the lock file that a job's process holds while it runs."""
        self.sandbox.make_directory(RECORDS)
        return self.sandbox.host_path("/srv/lock") / f"job-{name}.lock"

    def log_file(self, name: str) -> Path:
        """Return the file that a job's output is written to."""
        return log_file(self.sandbox, f"job-{name}")

    def open_log(self, name: str) -> BinaryIO:
        """Open that file to append to it."""
        return self.sandbox.open_append(f"/srv/log/job-{name}.log")

    def read(self, name: str) -> JobRecord:
        """Return a job's record; a recorded run without the job's lock was killed, and counts as interrupted."""
        record = self._recorded(name)
        if record.result is RunResult.RUNNING and locks.holder(self.lock_file(name)) is None:
            # The run may have recorded its result between the two reads.
            record = self._recorded(name)
            if record.result is RunResult.RUNNING:
                return record.model_copy(update={"result": RunResult.INTERRUPTED, "message": "killed during the run"})
        return record

    def _recorded(self, name: str) -> JobRecord:
        """Return the record in a job's file; a damaged file counts as "never ran", so that the job can run."""
        inside = f"{RECORDS}/{name}.json"
        try:
            with self.sandbox.open_read(inside) as file:
                since = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
                return JobRecord.model_validate_json(file.read())
        except FileNotFoundError:
            return JobRecord(name=name, known_since=now())
        except ValidationError:
            message = f"{self.sandbox.host_path(inside)} was damaged; its earlier runs are lost"
            return JobRecord(name=name, known_since=since, message=message)

    def write(self, record: JobRecord) -> None:
        """Write a job's record."""
        self.sandbox.write_file(f"{RECORDS}/{record.name}.json", record.model_dump_json(indent=2) + "\n")

    def record_success(self, name: str, *, started: datetime, ended: datetime) -> None:
        """Record work of a job that was done without its runner, such as the first backup; ignored while it runs."""
        if locks.holder(self.lock_file(name)) is None:
            done = {"result": RunResult.SUCCEEDED, "started": started, "ended": ended, "last_success": ended}
            cleared = {"exit_status": 0, "message": "", "failing": False}
            self.write(self.read(name).model_copy(update={**done, **cleared}))

    def publish(self, jobs: Iterable[HostJob]) -> None:
        """Write the metrics of these jobs to a file that node_exporter reads."""
        with self.sandbox.lock("job-metrics"):
            lines = _metrics([self.read(job.name) for job in jobs])
            self.sandbox.write_file(f"{METRICS}/{JOBS_FILE}", "".join(f"{line}\n" for line in lines))

    def beat(self) -> None:
        """Write the scheduler's heartbeat to a file that node_exporter reads."""
        name = "observatory_scheduler_heartbeat_timestamp_seconds"
        text = f"# HELP {name} Time of the scheduler's last heartbeat.\n# TYPE {name} gauge\n"
        beat(self.sandbox, NAME, f"{text}{name} {now().timestamp():.3f}\n")


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)


def _metrics(records: list[JobRecord]) -> Iterator[str]:
    """Yield the lines of Prometheus' text format; the time of an event that never happened is 0."""
    gauges: dict[str, tuple[str, Callable[[JobRecord], float]]] = {
        "observatory_job_failed": ("Whether the last run that was not interrupted failed.", lambda r: int(r.failing)),
        "observatory_job_running": ("Whether the job runs.", lambda r: int(r.result is RunResult.RUNNING)),
        "observatory_job_last_start_timestamp_seconds": ("When the last run began.", lambda r: _seconds(r.started)),
        "observatory_job_last_success_timestamp_seconds": (
            "When a run last succeeded.",
            lambda r: _seconds(r.last_success),
        ),
        "observatory_job_last_duration_seconds": ("Duration of the last run that ended.", _duration),
    }
    for name, (what, value) in gauges.items():
        yield f"# HELP {name} {what}"
        yield f"# TYPE {name} gauge"
        for record in records:
            yield f'{name}{{name="{record.name}"}} {value(record):.3f}'


def _seconds(time: datetime | None) -> float:
    return time.timestamp() if time else 0.0


def _duration(record: JobRecord) -> float:
    return (record.ended - record.started).total_seconds() if record.ended and record.started else 0.0
