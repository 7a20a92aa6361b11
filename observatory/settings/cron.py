"""Cron expressions: parsed once, and rendered for APScheduler and for systemd.

Five fields (minute, hour, day of month, month, day of week) in UTC, with lists, ranges, steps and English names, as in
crontab(5). Every field is parsed into the set of its values, because the schedulers read some texts differently: day of
week `0` is Sunday to cron and Monday to APScheduler.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from typing import Self

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MOST_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_PART = re.compile(r"(?:(?P<all>\*)|(?P<first>\w+)(?:-(?P<last>\w+))?)(?:/(?P<step>\d+))?")


@dataclass(frozen=True, kw_only=True)
class _Field:
    """One field of an expression: its name, lowest and highest value, and the names of the values from `low` on."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    def values(self, text: str) -> frozenset[int]:
        """Return the values of a field's text."""
        return frozenset(value for part in text.split(",") for value in self._part(part))

    def _part(self, part: str) -> Iterable[int]:
        match = _PART.fullmatch(part)
        if not match:
            raise ValueError(f"{self.name} {part!r} is neither *, a value, a range nor a step")
        step = int(match["step"] or 1)
        if step == 0:
            raise ValueError(f"{self.name} {part!r} has a step of 0")
        if match["all"]:
            return range(self.low, self.high + 1, step)
        first = self._value(match["first"])
        last = self._value(match["last"]) if match["last"] else self.high if match["step"] else first
        if last < first:
            raise ValueError(f"{self.name} {part!r} ends before it starts")
        return range(first, last + 1, step)

    def _value(self, text: str) -> int:
        if text.lower() in self.names:
            return self.low + self.names.index(text.lower())
        if not (text.isascii() and text.isdigit()) or not self.low <= int(text) <= self.high:
            named = f" or one of {', '.join(self.names)}" if self.names else ""
            raise ValueError(f"{self.name} {text!r} is not within {self.low}-{self.high}{named}")
        return int(text)

    def text(self, values: frozenset[int]) -> str:
        """Return the values as `*` or as a list of numbers."""
        whole = values == frozenset(range(self.low, self.high + 1))
        return "*" if whole else ",".join(str(value) for value in sorted(values))


MINUTE, HOUR = _Field(name="minute", low=0, high=59), _Field(name="hour", low=0, high=23)
DAY, MONTH = _Field(name="day of month", low=1, high=31), _Field(name="month", low=1, high=12, names=MONTHS)
WEEKDAY = _Field(name="day of week", low=0, high=7, names=WEEKDAYS)  # 7 is Sunday, as 0 is
FIELDS = (MINUTE, HOUR, DAY, MONTH, WEEKDAY)


@dataclass(frozen=True, kw_only=True)
class Cron:
    """A cron expression: the values of each field; `weekdays` counts from Sunday, which is 0."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an expression.

        Raises:
            ValueError: it does not have five fields, a value is out of range, no month has its day, or it has both a
                day of month and a day of week, which cron would combine by "or".
        """
        parts = text.split()
        if len(parts) != len(FIELDS):
            raise ValueError(f"{text!r}: expected five fields: {', '.join(field.name for field in FIELDS)}")
        minutes, hours, days, months, weekdays = (field.values(part) for field, part in zip(FIELDS, parts, strict=True))
        if parts[2] != "*" and parts[4] != "*":
            raise ValueError(f"{text!r}: has a day of month and a day of week; set one of them to *")
        if not any(day <= MOST_DAYS[month - 1] for day in days for month in months):
            raise ValueError(f"{text!r}: none of these months has this day")
        weekdays = frozenset(day % len(WEEKDAYS) for day in weekdays)
        return cls(minutes=minutes, hours=hours, days=days, months=months, weekdays=weekdays)

    def trigger_fields(self) -> dict[str, str]:
        """Return the fields of APScheduler's CronTrigger."""
        return {
            "second": "0",
            "minute": MINUTE.text(self.minutes),
            "hour": HOUR.text(self.hours),
            "day": DAY.text(self.days),
            "month": MONTH.text(self.months),
            "day_of_week": ",".join(self._weekdays()) or "*",
        }

    def on_calendar(self) -> str:
        """Return the OnCalendar= of a systemd timer."""
        weekdays = ",".join(day.capitalize() for day in self._weekdays())
        date = f"*-{MONTH.text(self.months)}-{DAY.text(self.days)}"
        time = f"{HOUR.text(self.hours)}:{MINUTE.text(self.minutes)}:00"
        return f"{weekdays} {date} {time} UTC".strip()

    def _weekdays(self) -> list[str]:
        """Return the names of the days, none for all days."""
        return [] if len(self.weekdays) == len(WEEKDAYS) else [WEEKDAYS[day] for day in sorted(self.weekdays)]

    def runs_on(self, day: date) -> bool:
        """Return whether it has a run on a day."""
        return day.day in self.days and day.month in self.months and day.isoweekday() % len(WEEKDAYS) in self.weekdays

    def times(self) -> set[timedelta]:
        """Return the times of day of its runs."""
        return {timedelta(hours=hour, minutes=minute) for hour in self.hours for minute in self.minutes}


CALENDAR = tuple(date(2024, 1, 1) + timedelta(days=number) for number in range(9 * 366))  # with three leap years


def longest_pause(*schedules: Cron) -> timedelta:
    """Return the longest time between two runs that follow each other, of any of the schedules."""

    @functools.cache
    def on_a_day(running: tuple[Cron, ...]) -> tuple[timedelta, timedelta, timedelta]:
        """Return the first and the last time of the schedules that run on a day, and the longest pause between."""
        times = sorted(set().union(*(each.times() for each in running)))
        return times[0], times[-1], max((later - earlier for earlier, later in pairwise(times)), default=timedelta(0))

    longest, ended = timedelta(0), None
    for number, day in enumerate(CALENDAR):
        if running := tuple(each for each in schedules if each.runs_on(day)):
            first, last, between = on_a_day(running)
            begins = timedelta(days=number)
            longest = max(longest, between, begins + first - ended if ended else between)
            ended = begins + last
    return longest
