"""The jobs of the host on a real stack: they really happen, by themselves, and their failures are seen."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml

from observatory.operations.scheduler import JobStatus, jobs
from observatory.workspace import Workspace
from tests.stack.test_faults import EMBEDDED
from tests.stack.test_monitoring import DEADLINE_S, Monitoring, wait
from tests.support.checkout import Checkout


def scheduler(stack: Checkout) -> int:
    """Return the scheduler's process, waiting until there is one that is ready."""
    found: list[int] = []

    def ready() -> bool:
        daemons = stack.status().daemons
        found[:] = [each.pid for each in daemons if (each.name, each.health) == ("scheduler", "ready") and each.pid]
        return bool(found)

    wait(ready)
    return found[0]


def job(stack: Checkout, name: str) -> JobStatus:
    """Return a job as the command `scheduler list` shows it."""
    [found] = [job for job in jobs(Workspace(root=stack.root, stack="local")) if job.record.name == name]
    return found


def kill_scheduler(stack: Checkout) -> None:
    pid = scheduler(stack)
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}/cwd").exists():
        time.sleep(0.02)


def make_overdue(stack: Checkout, name: str) -> None:
    """Have the job's last time pass unused: it is known for eight days and never ran."""
    file = stack.home / f"data/jobs/{name}.json"
    known_since = datetime.now(UTC) - timedelta(days=8)
    file.write_text(json.dumps({"name": name, "known_since": known_since.isoformat()}))


def backups(stack: Checkout, kind: str) -> list[str]:
    listed = stack.json("backup", "list", "--repository", "1")
    return [backup["label"] for backup in listed if backup["type"] == kind]


def test_up_starts_a_scheduler_with_the_next_run_of_each_job(stack: Checkout) -> None:
    asked = datetime.now(UTC)
    shown = stack.well_status()["jobs"]
    assert [job["name"] for job in shown] == [
        "backup-full",
        "backup-differential",
        "backup-check",
        "backup-contents",
        "log-rotation",
        "restore-drill",
        "certificates",
        "clones",
    ]
    assert all(datetime.fromisoformat(job["next_run"]) > asked for job in shown)
    table = stack.well_table()
    settings = yaml.safe_load((stack.root / "Pulumi.local.yaml").read_text())["config"]
    assert f"backup-differential  {settings['llm-observatory:schedule']['backup_differential']}" in table


def test_a_second_scheduler_is_refused_and_names_the_process_of_the_first(stack: Checkout) -> None:
    assert f"process {scheduler(stack)};" in stack.run("scheduler", expect=3).stderr


def test_the_scheduler_inherits_no_descriptor_or_secret(stack: Checkout) -> None:
    pid = scheduler(stack)
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"PULUMI" not in environment
    assert (stack.root / ".observatory/passphrase").read_bytes() not in environment
    own = {"/dev/null", f"{stack.home}/log/scheduler.log", f"{stack.home}/lock/scheduler.lock"}
    wait(lambda: open_files(pid) <= own)  # it opens others for moments
    assert os.getsid(pid) == pid


def open_files(pid: int) -> set[str]:
    """Return the paths of the files that a process has open."""
    found = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(file))  # noqa: PTH115 - also of what is no file
    return {name for name in found if name.startswith("/")}


def test_an_unknown_job_is_refused_and_the_jobs_are_listed(stack: Checkout) -> None:
    output = stack.run("scheduler", "run", "backup", expect=2).stderr
    assert (
        "no job 'backup' (jobs: backup-full, backup-differential, backup-check, backup-contents, log-rotation, "
        "restore-drill, certificates, clones)" in output
    )


def test_a_job_can_be_run_by_hand_and_reaches_prometheus(stack: Checkout) -> None:
    record = stack.json("scheduler", "run", "log-rotation")
    assert record["result"] == "succeeded"
    [listed] = [job for job in stack.json("scheduler", "list") if job["name"] == "log-rotation"]
    assert listed["last_success"] == record["ended"]
    ended = datetime.fromisoformat(record["ended"]).timestamp()
    query = f'observatory_job_last_success_timestamp_seconds{{name="log-rotation"}} > {ended - 1}'
    wait(lambda: Monitoring(stack).query(query))


def test_the_scheduler_log_continues_after_a_rotation(stack: Checkout) -> None:
    rotated = stack.json("scheduler", "rotate-logs", "--force")["rotated"]
    assert any(name.startswith("scheduler.log-") for name in rotated)
    assert any(name.startswith("patroni.log-") for name in rotated)
    wait((stack.home / "log/patroni.log").exists)


def test_scheduled_jobs_run_and_survive_kills(checkout: Checkout) -> None:
    checkout.run("up", *EMBEDDED)
    # A killed scheduler comes back without a command, and makes up for a missed backup, once.
    make_overdue(checkout, "backup-differential")
    kill_scheduler(checkout)
    wait(lambda: job(checkout, "backup-differential").record.result == "succeeded")
    later = job(checkout, "backup-differential").next_run
    assert later is not None
    assert later > datetime.now(UTC)

    # A job outlives its killed scheduler, and the next one starts no second.
    make_overdue(checkout, "backup-differential")
    kill_scheduler(checkout)
    runner, work = running(checkout, "backup-differential")
    os.kill(work, signal.SIGSTOP)
    kill_scheduler(checkout)
    assert scheduler(checkout)
    refused = checkout.run("scheduler", "run", "backup-differential", expect=3).stderr
    assert str(runner) in refused
    os.kill(work, signal.SIGCONT)
    wait(lambda: job(checkout, "backup-differential").record.result == "succeeded")
    assert len(backups(checkout, "differential")) == 2  # one of each time

    # A failed job is seen until it succeeds.
    repository = checkout.home / "data/backups"
    repository.rename(repository.with_name("elsewhere"))
    assert "job backup-full failed" in checkout.run("scheduler", "run", "backup-full", expect=1).stderr
    assert job(checkout, "backup-full").record.failing
    monitoring = Monitoring(checkout)
    wait(lambda: "ObservatoryJobFailed" in monitoring.firing())
    if repository.exists():
        repository.rename(repository.with_name("empty"))
    repository.with_name("elsewhere").rename(repository)
    wait(lambda: checkout.exit_code("scheduler", "run", "backup-full") == 0)  # the differential one has its time, too
    wait(lambda: "ObservatoryJobFailed" not in monitoring.firing())

    # `down` ends it with a job in the middle, and nothing is left.
    make_overdue(checkout, "backup-differential")
    kill_scheduler(checkout)
    _, work = running(checkout, "backup-differential")
    os.kill(work, signal.SIGSTOP)  # it must not end before `down` comes to it
    checkout.run("down", "--keep-data")
    assert checkout.processes() == set()
    record = json.loads((checkout.home / "data/jobs/backup-differential.json").read_text())
    assert record["result"] == "interrupted"


def running(stack: Checkout, name: str) -> tuple[int, int]:
    """Wait until a job runs; return the processes of its runner and of its work."""
    lock = stack.home / f"lock/job-{name}.lock"
    deadline = time.monotonic() + DEADLINE_S
    while True:
        pids = [int(pid) for pid in lock.read_text().split()] if lock.exists() else []
        if len(pids) == 2 and all(Path(f"/proc/{pid}/cwd").exists() for pid in pids):
            return pids[0], pids[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_time_that_never_comes_is_refused_before_anything_is_made(checkout: Checkout) -> None:
    fields = ("backup_full", "log_rotation")
    checkout.configure(schedule=dict.fromkeys(fields, "0 0 31 2 *"))
    output = checkout.run("up", *EMBEDDED, expect=2).stderr
    for field in fields:
        assert f"llm-observatory:schedule.{field}: '0 0 31 2 *': none of these months has this day" in output
    assert not (checkout.root / ".observatory").exists()
