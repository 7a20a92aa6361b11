"""Stacks of tests: no job of theirs begins beside a test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from apscheduler.triggers.cron import CronTrigger

from observatory.settings.base import Schedule
from observatory.settings.cron import Cron
from tests.support.checkout import jobs_at_another_time


@pytest.mark.parametrize("now", ["2026-11-29T01:29:59", "2026-12-02T14:30:00", "2026-12-31T23:59:59"])
def test_no_job_begins_within_half_a_day_but_the_check_of_backups(now: str) -> None:
    begun = datetime.fromisoformat(now).replace(tzinfo=UTC)
    schedule = jobs_at_another_time(begun)
    assert set(Schedule.model_fields) - set(schedule) == {"backup_check"}
    for expression in schedule.values():
        trigger = CronTrigger(**Cron.parse(expression).trigger_fields(), timezone=UTC)
        assert trigger.get_next_fire_time(None, begun) >= begun + timedelta(hours=11, minutes=58)
