"""When a job is due, by its record."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from observatory.nodes.host_jobs import HostJob
from observatory.scheduling import due
from observatory.scheduling.due import next_run
from observatory.scheduling.records import JobRecord, RunResult

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)  # a Monday
SUNDAYS = HostJob(name="job", description="A job", command=("x",), cron="30 1 * * sun", timeout=60)
LAST_SUNDAY, NEXT_SUNDAY = (datetime(2026, 11, day, 1, 30, tzinfo=UTC) for day in (22, 29))


@pytest.fixture(autouse=True)
def _noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(due, "now", lambda: NOW)


def record(result: RunResult, *, started: datetime | None = None, known_since: datetime = NOW) -> JobRecord:
    return JobRecord(name="job", known_since=known_since, result=result, started=started)


def test_a_new_job_waits_for_its_time() -> None:
    assert next_run(SUNDAYS, record(RunResult.NEVER)) == NEXT_SUNDAY


def test_a_job_that_ran_at_its_time_waits_for_the_next() -> None:
    assert next_run(SUNDAYS, record(RunResult.SUCCEEDED, started=LAST_SUNDAY)) == NEXT_SUNDAY
    assert next_run(SUNDAYS, record(RunResult.FAILED, started=LAST_SUNDAY)) == NEXT_SUNDAY


def test_a_missed_run_is_overdue_also_the_first_one() -> None:
    before = LAST_SUNDAY - timedelta(days=2)
    assert next_run(SUNDAYS, record(RunResult.SUCCEEDED, started=before)) == LAST_SUNDAY
    assert next_run(SUNDAYS, record(RunResult.NEVER, known_since=before)) == LAST_SUNDAY


def test_an_interrupted_run_is_due_at_once() -> None:
    assert next_run(SUNDAYS, record(RunResult.INTERRUPTED, started=LAST_SUNDAY)) == NOW
