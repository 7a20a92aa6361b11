"""The scheduled jobs, and their systemd units."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from observatory.cli import load_commands
from observatory.cli.app import app
from observatory.nodes.host_jobs import HostJob, host_jobs
from observatory.nodes.timers import timer_files
from observatory.settings import LocalSettings, Sample, Schedule

load_commands()
JOBS = host_jobs(LocalSettings())
SAMPLING = host_jobs(LocalSettings(sample=Sample(source="production", fraction=0.2, cron="1 2 * * *")))[-1]


def test_names_are_unique_and_every_setting_is_a_jobs_time() -> None:
    assert len({job.name for job in JOBS}) == len(JOBS)
    assert {job.cron for job in JOBS} == set(Schedule().model_dump().values())


def test_a_sample_is_made_where_the_settings_name_its_source() -> None:
    assert SAMPLING.name == "data-sample"
    assert SAMPLING.command == ("data", "sample", "--from", "production", "--fraction", "0.2")
    assert SAMPLING.cron == "1 2 * * *"
    assert all(job.name != "data-sample" for job in JOBS)


def test_a_schedule_in_the_settings_is_the_jobs() -> None:
    jobs = host_jobs(LocalSettings(schedule=Schedule(backup_full="5 4 1 * *")))
    assert next(job for job in jobs if job.name == "backup-full").cron == "5 4 1 * *"


@pytest.mark.parametrize("job", [*JOBS, SAMPLING], ids=lambda job: job.name)
def test_a_jobs_command_exists(job: HostJob) -> None:
    done = CliRunner().invoke(app, [*job.command, "--help"])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(app, [*job.command, "--wrong", "--help"]).exit_code == 2


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    files = {}
    for job in JOBS:
        files.update(timer_files(job, command=("/bin/true", "100 %", "$HOME"), user="root", directory=str(tmp_path)))
    for path, text in files.items():
        Path(path).write_text(text)
    assert len(files) == 2 * len(JOBS)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *files],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_machines_own_command_runs_at_the_jobs_time_and_within_its_timeout() -> None:
    files = timer_files(JOBS[0], command=("/usr/bin/pgbackrest", "backup"), user="observatory", after=("a.service",))
    service = files["/etc/systemd/system/observatory-backup-full.service"]
    assert 'ExecStart="/usr/bin/pgbackrest" "backup"\n' in service
    assert "After=network-online.target a.service\n" in service
    assert "TimeoutStartSec=43200\n" in service
    timer = files["/etc/systemd/system/observatory-backup-full.timer"]
    assert "OnCalendar=Sun *-*-* 1:30:00 UTC\n" in timer
    assert "\nPersistent=true\n" in timer
