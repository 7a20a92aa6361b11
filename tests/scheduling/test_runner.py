"""One job: its record and its metrics after each result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from observatory.files import locks
from observatory.nodes.host_jobs import HostJob
from observatory.scheduling import runner
from observatory.scheduling.host_process import METRICS
from observatory.scheduling.records import JOBS_FILE, RecordStore, RunResult
from observatory.scheduling.runner import JobFailedError, JobRunningError, run
from tests.support.waiting import until

JOB = HostJob(name="job", description="A job", command=("x",), cron="* * * * *", timeout=60)
RUN = """
import sys
from pathlib import Path
from observatory.nodes.host_jobs import HostJob
from observatory.runtime import Sandbox
from observatory.scheduling.records import RecordStore
from observatory.scheduling.runner import run
job = HostJob(name="job", description="A job", command=("x",), cron="* * * * *", timeout=60)
store = RecordStore(sandbox=Sandbox(Path(sys.argv[1]), Path(sys.argv[2])))
run(job, ["sleep", "1000"], cwd=Path("/"), store=store)
"""


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def metric(store: RecordStore, name: str) -> float:
    store.publish([JOB])
    lines = store.sandbox.host_path(f"{METRICS}/{JOBS_FILE}").read_text().splitlines()
    [value] = [line.split()[-1] for line in lines if line.startswith(f'{name}{{name="job"}}')]
    return float(value)


def background(store: RecordStore) -> subprocess.Popen[bytes]:
    """Start a runner whose job takes for ever; return once the job runs."""
    places = [str(store.sandbox.home), str(store.sandbox.rootfs)]
    process = subprocess.Popen([sys.executable, "-c", RUN, *places], stderr=subprocess.DEVNULL)

    def runs() -> bool:  # the file may have the processes of an earlier run
        holders = holders_of(store)
        return len(holders) == 2 and holders[0] == process.pid and alive(holders[1])

    until(runs, "the job to run")
    return process


def holders_of(store: RecordStore) -> list[int]:
    file = store.lock_file("job")
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def job_pid(store: RecordStore) -> int:
    return holders_of(store)[1]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_a_job_that_never_ran_has_a_record_and_metrics(store: RecordStore) -> None:
    assert store.read("job").result is RunResult.NEVER
    assert metric(store, "observatory_job_failed") == 0
    assert metric(store, "observatory_job_last_success_timestamp_seconds") == 0


def test_a_success_is_recorded_with_its_times(store: RecordStore, tmp_path: Path) -> None:
    record = run(JOB, sh("echo done"), cwd=tmp_path, store=store)
    assert record == store.read("job")
    assert record.result is RunResult.SUCCEEDED
    assert record.started
    assert record.ended
    assert record.started <= record.ended == record.last_success
    assert store.log_file("job").read_text() == "done\n"
    assert metric(store, "observatory_job_last_success_timestamp_seconds") == round(record.ended.timestamp(), 3)


def test_a_failure_is_reported_recorded_and_measured_until_a_success(store: RecordStore, tmp_path: Path) -> None:
    run(JOB, sh("true"), cwd=tmp_path, store=store)
    with pytest.raises(
        JobFailedError, match=r"(?s)job failed: exit status 7\. the moon's disk is full.*log/job-job\.log"
    ):
        run(JOB, sh("echo 'the moon''s disk is full'; exit 7".replace("''", "'\\''")), cwd=tmp_path, store=store)
    record = store.read("job")
    assert (record.result, record.exit_status, record.failing) == (RunResult.FAILED, 7, True)
    assert record.last_success
    assert metric(store, "observatory_job_failed") == 1
    run(JOB, sh("true"), cwd=tmp_path, store=store)
    assert metric(store, "observatory_job_failed") == 0


def test_a_record_has_the_output_of_its_own_run_only(store: RecordStore, tmp_path: Path) -> None:
    run(JOB, sh("echo old"), cwd=tmp_path, store=store)
    with pytest.raises(JobFailedError):
        run(JOB, sh("echo new; exit 1"), cwd=tmp_path, store=store)
    assert store.read("job").message == "exit status 1. new"


def test_a_job_that_cannot_be_started_failed(store: RecordStore, tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match="cannot be started"):
        run(JOB, ["/no/such/program"], cwd=tmp_path, store=store)
    assert store.read("job").result is RunResult.FAILED


@pytest.mark.parametrize("script", ["sleep 1000", "trap '' TERM; sleep 1000 & wait; wait"], ids=["hangs", "stubborn"])
def test_a_hanging_job_is_ended_at_its_timeout_with_all_it_started(
    store: RecordStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(runner, "STOP_SECONDS", 0.5)
    with pytest.raises(JobFailedError, match="timed out: did not end within 1 s"):
        run(JOB.model_copy(update={"timeout": 1}), sh(script), cwd=tmp_path, store=store)
    assert store.read("job").result is RunResult.TIMED_OUT
    assert metric(store, "observatory_job_failed") == 1
    until(lambda: not alive(job_pid(store)), "the end of the killed job")
    assert locks.holder(store.lock_file("job")) is None


def test_a_job_never_runs_twice_at_once(store: RecordStore, tmp_path: Path) -> None:
    first = background(store)
    with pytest.raises(JobRunningError, match=f"is already running, as process {first.pid}"):
        run(JOB, sh("true"), cwd=tmp_path, store=store)
    assert store.read("job").result is RunResult.RUNNING
    first.terminate()
    first.wait()


def test_an_interrupted_runner_stops_its_job_and_records_that(store: RecordStore) -> None:
    first = background(store)
    pid = job_pid(store)
    first.terminate()
    assert first.wait() != 0
    assert not alive(pid)
    assert store.read("job").result is RunResult.INTERRUPTED
    assert metric(store, "observatory_job_failed") == 0


def test_an_interrupted_run_does_not_end_a_failure(store: RecordStore, tmp_path: Path) -> None:
    with pytest.raises(JobFailedError):
        run(JOB, sh("exit 1"), cwd=tmp_path, store=store)
    first = background(store)
    first.terminate()
    first.wait()
    assert metric(store, "observatory_job_failed") == 1


def test_a_killed_runners_job_keeps_its_lock_and_then_counts_as_interrupted(store: RecordStore, tmp_path: Path) -> None:
    first = background(store)
    pid = job_pid(store)
    first.kill()
    first.wait()
    assert store.read("job").result is RunResult.RUNNING
    with pytest.raises(JobRunningError, match=f"process {pid}"):
        run(JOB, sh("true"), cwd=tmp_path, store=store)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid), "the end of the job")
    assert store.read("job").result is RunResult.INTERRUPTED
    assert run(JOB, sh("true"), cwd=tmp_path, store=store).result is RunResult.SUCCEEDED


def test_a_damaged_record_is_reported_and_the_job_runs(store: RecordStore, tmp_path: Path) -> None:
    run(JOB, sh("true"), cwd=tmp_path, store=store)
    store.sandbox.host_path("/srv/data/jobs/job.json").write_text("{")
    assert "job.json was damaged" in store.read("job").message
    assert run(JOB, sh("true"), cwd=tmp_path, store=store).result is RunResult.SUCCEEDED
