"""Cron expressions: both renderings have the same times, and invalid ones are refused."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from apscheduler.triggers.cron import CronTrigger

from observatory.settings.cron import Cron, longest_pause

EXPRESSIONS = (
    "30 1 * * sun",
    "30 1 * * 0",
    "30 1 * * 7",
    "30 1 * * mon-sat",
    "*/15 * * * *",
    "0-59/7 9-17 * * 1-5",
    "5/20 * * * *",
    "0 0 29 2 *",
    "0 12 */10 * *",
    "1,2,3 4 1,15 JAN,jul *",
    "* * * * *",
)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def next_times(text: str, start: datetime, count: int) -> list[datetime]:
    """Return the next times by APScheduler."""
    trigger = CronTrigger(**Cron.parse(text).trigger_fields(), timezone=UTC)
    found, now = [], start
    for _ in range(count):
        time = trigger.get_next_fire_time(None, now)
        found.append(time)
        now = time + timedelta(seconds=1)
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30 1 * * sun", "2026-11-29T01:30"),
        ("30 1 * * 0", "2026-11-29T01:30"),
        ("30 1 * * 7", "2026-11-29T01:30"),
        ("30 1 * * 1-6", "2026-11-24T01:30"),
        ("*/15 * * * *", "2026-11-23T12:15"),
        ("50/5 * * * *", "2026-11-23T12:50"),
        ("0 0 29 2 *", "2028-02-29T00:00"),
        ("0 0 1 * *", "2026-12-01T00:00"),
        ("0 0 * JAN *", "2027-01-01T00:00"),
    ],
)
def test_an_expression_means_the_same_as_to_cron(text: str, expected: str) -> None:
    assert next_times(text, at("2026-11-23T12:01"), 1) == [at(expected)]  # a Monday


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("text", EXPRESSIONS)
def test_systemd_and_apscheduler_have_the_same_times(text: str) -> None:
    calendar = Cron.parse(text).on_calendar()
    said = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=20", "--base-time=2026-11-23 12:00:30 UTC", calendar],
        check=True,
        capture_output=True,
        text=True,
        env={"TZ": "UTC", "LANG": "C"},
    ).stdout
    elapses = re.findall(r"(?:Next elapse|Iter\. #\d+|Iteration #\d+): \w+ (\S+ \S+) UTC", said)
    times = [at(time) for time in elapses]
    assert len(times) >= 1
    assert times == next_times(text, at("2026-11-23T12:00:30"), len(times))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected five fields"),
        ("@daily", "expected five fields"),
        ("0 30 1 * * sun", "expected five fields"),
        ("60 1 * * *", "minute '60' is not within 0-59"),
        ("0 24 * * *", "hour '24' is not within 0-23"),
        ("0 0 0 * *", "day of month '0' is not within 1-31"),
        ("0 0 * 13 *", "month '13' is not within 1-12"),
        ("0 0 * * 8", "day of week '8' is not within 0-7"),
        ("0 0 * * funday", "day of week 'funday' is not within 0-7 or one of sun, mon"),
        ("*/0 * * * *", "step of 0"),
        ("9-5 * * * *", "ends before it starts"),
        ("1,, * * * *", "minute '' is neither"),
        ("-5 * * * *", "minute '-5' is neither"),
        ("0 0 31 2,4 *", "none of these months has this day"),
        ("0 0 1 * mon", "set one of them to *"),
        ("٣ * * * *", "is not within 0-59"),
    ],
)
def test_an_invalid_expression_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        Cron.parse(text)


@pytest.mark.parametrize(
    ("schedules", "expected"),
    [
        (("30 1 * * sun", "30 1 * * mon-sat"), timedelta(days=1)),
        (("0 1 * * sun",), timedelta(days=7)),
        (("0 1 * * sun", "0 13 * * wed"), timedelta(days=3, hours=12)),
        (("0 9-17 * * mon-fri",), timedelta(days=2, hours=16)),
        (("*/5 * * * *",), timedelta(minutes=5)),
        (("0 3 1 * *",), timedelta(days=31)),
        (("0 0 29 feb *",), timedelta(days=4 * 365 + 1)),
    ],
)
def test_the_longest_pause_lies_between_runs_of_any_schedule(schedules: tuple[str, ...], expected: timedelta) -> None:
    assert longest_pause(*(Cron.parse(text) for text in schedules)) == expected
