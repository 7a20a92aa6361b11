"""Runs one scheduled job as a process of its own, under its lock and its timeout, and records its result.

The job's process inherits the lock as an open descriptor and so holds it until it ends, even if the runner is killed.
Two processes of one job therefore never run at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from observatory.engines.stack_settings import load_settings
from observatory.errors import WRONG_USAGE, ObservatoryError
from observatory.files import locks
from observatory.files.locks import FileLockHeldError
from observatory.interruption import interruptible
from observatory.nodes.host_jobs import HostJob, host_jobs
from observatory.runtime import RuntimeFault
from observatory.scheduling.records import JobRecord, RecordStore, RunResult
from observatory.workspace import Workspace

STOP_SECONDS = 20  # from SIGTERM until a job is killed
MESSAGE_BYTES = 2000  # of the end of a job's output, in its record


class JobRunningError(FileLockHeldError):
    """The job is already running; nothing was started."""


class JobFailedError(RuntimeFault):
    """The job failed or took longer than its timeout; the message ends with the end of its output."""


class UnknownJobError(ObservatoryError):
    """There is no job with this name."""

    exit_code = WRONG_USAGE


def run_job(workspace: Workspace, name: str) -> JobRecord:
    """Run a job now and return its record.

    Raises:
        UnknownJobError: there is no such job.
        JobRunningError: it is already running.
        JobFailedError: it failed or took longer than its timeout; the record has the result too.
        KeyboardInterrupt: this process received SIGINT or SIGTERM; the job is stopped first.
    """
    jobs = {job.name: job for job in host_jobs(load_settings(workspace))}
    if name not in jobs:
        raise UnknownJobError(f"no job {name!r} (jobs: {', '.join(jobs)})")
    store = RecordStore(sandbox=workspace.sandbox)
    argv = [sys.executable, "-m", "observatory", *jobs[name].command, "--environment", workspace.stack]
    try:
        return run(jobs[name], argv, cwd=workspace.root, store=store)
    finally:
        store.publish(jobs.values())


def run(job: HostJob, argv: list[str], *, cwd: Path, store: RecordStore) -> JobRecord:
    """Run the command line `argv` as the job and return its record; see `run_job` for what it raises."""
    try:
        with interruptible(), locks.claim(store.lock_file(job.name)) as lock:
            record = store.read(job.name).begun()
            store.write(record)
            record = _run(job, argv, cwd=cwd, store=store, record=record, lock=lock)
            store.write(record)
    except FileLockHeldError:
        pid = locks.holder(store.lock_file(job.name))
        raise JobRunningError(
            f"the job {job.name} is already running, as process {pid}; see {store.log_file(job.name)}"
        ) from None
    if record.result is RunResult.INTERRUPTED:
        raise KeyboardInterrupt
    if record.result.failed:
        raise JobFailedError(f"the job {job.name} {record.result}: {record.message}\nSee {store.log_file(job.name)}")
    return record


def _run(job: HostJob, argv: list[str], *, cwd: Path, store: RecordStore, record: JobRecord, lock: int) -> JobRecord:
    """Run the job until it ends, fails, times out or is interrupted; return its record."""
    with store.open_log(job.name) as log:
        begin = log.seek(0, os.SEEK_END)
        try:
            process = subprocess.Popen(
                argv,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[lock],
            )
        except OSError as error:
            return record.finished(RunResult.FAILED, message=f"cannot be started: {error}")
        try:
            locks.add_holder(lock, process.pid)
            status = process.wait(timeout=job.timeout)
        except subprocess.TimeoutExpired:
            _end(process)
            message = f"did not end within {job.timeout} s and was stopped. {_output_end(log, begin)}"
            return record.finished(RunResult.TIMED_OUT, exit_status=process.returncode, message=message)
        except KeyboardInterrupt:
            _end(process)
            return record.finished(RunResult.INTERRUPTED, exit_status=process.returncode, message="stopped by a signal")
        result = RunResult.FAILED if status else RunResult.SUCCEEDED
        message = f"exit status {status}. {_output_end(log, begin)}" if status else ""
        return record.finished(result, exit_status=status, message=message)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop the job's process group by SIGTERM, after `STOP_SECONDS` by SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=STOP_SECONDS)
            return


def _output_end(log: IO[bytes], begin: int) -> str:
    """Return the end of this run's output, also from a log that was rotated meanwhile: `log` stays open."""
    end = log.seek(0, os.SEEK_END)
    log.seek(max(begin, end - MESSAGE_BYTES))
    return log.read().decode(errors="replace").strip()
