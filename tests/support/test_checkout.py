"""Stacks of tests: no job of theirs begins beside a test, and reading them disturbs no other thread."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from apscheduler.triggers.cron import CronTrigger

from observatory.settings.base import Schedule
from observatory.settings.cron import Cron
from tests.support.checkout import Checkout, jobs_at_another_time, variables


@pytest.mark.parametrize("now", ["2026-11-29T01:29:59", "2026-12-02T14:30:00", "2026-12-31T23:59:59"])
def test_no_job_begins_within_half_a_day_but_the_check_of_backups(now: str) -> None:
    begun = datetime.fromisoformat(now).replace(tzinfo=UTC)
    schedule = jobs_at_another_time(begun)
    assert set(Schedule.model_fields) - set(schedule) == {"backup_check"}
    for expression in schedule.values():
        trigger = CronTrigger(**Cron.parse(expression).trigger_fields(), timezone=UTC)
        assert trigger.get_next_fire_time(None, begun) >= begun + timedelta(hours=11, minutes=58)


def test_other_threads_see_the_environment_while_variables_are_set_and_reset() -> None:
    before, ended, gaps = dict(os.environ), threading.Event(), list[str]()

    def look() -> None:
        while not ended.is_set():
            gaps.extend(name for name in before if name not in os.environ)

    looking = threading.Thread(target=look)
    looking.start()
    for _ in range(300):
        with variables({"PATH": before["PATH"], "OF_A_STACK": "x"}):
            assert os.environ["OF_A_STACK"] == "x"
    ended.set()
    looking.join()

    assert gaps == []
    assert dict(os.environ) == before


COMMAND = """
import json, pathlib, sys
looks = pathlib.Path("looks")
looks.write_text(looks.read_text() + "x" if looks.exists() else "x")
print(json.dumps({"looks": len(looks.read_text()), "arguments": sys.argv[1:]}))
sys.exit(len(looks.read_text()) < 3)
"""


def test_the_status_of_a_stack_is_read_until_it_is_well(tmp_path: Path) -> None:
    (tmp_path / "observatory").mkdir()
    (tmp_path / "observatory/__main__.py").write_text(COMMAND)
    checkout = Checkout(root=tmp_path, environment={"PYTHONPATH": str(tmp_path)})

    assert checkout.well_status() == {"looks": 3, "arguments": ["status", "--output", "json"]}
    assert checkout.well_table() == '{"looks": 4, "arguments": ["status"]}\n'


def test_verify_is_run_until_it_passes(tmp_path: Path) -> None:
    (tmp_path / "observatory").mkdir()
    (tmp_path / "observatory/__main__.py").write_text(COMMAND)

    Checkout(root=tmp_path, environment={"PYTHONPATH": str(tmp_path)}).verify("--comprehensive")

    assert (tmp_path / "looks").read_text() == "xxx"
