"""Deployment windows open and close by their own time zone."""

import contextlib
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from observatory.settings import LocalSettings
from observatory.settings.windows import Weekday, Window, next_opening, whole_week

BERLIN = ZoneInfo("Europe/Berlin")
TUESDAYS = Window(days=("tue",), opens="09:00", closes="12:00", timezone="Europe/Berlin")
NIGHTS = Window(days=("fri", "sat"), opens="22:00", closes="02:00")


def at(text: str) -> datetime:
    """Return a time in UTC. 2026-03-03 is a Tuesday."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_without_windows_deployments_are_always_allowed() -> None:
    assert next_opening((), at("2026-03-01T03:00")) is None


@pytest.mark.parametrize("now", ["2026-03-03T08:00", "2026-03-03T10:59:59"])
def test_an_open_window_has_no_next_opening(now: str) -> None:
    assert next_opening((TUESDAYS,), at(now)) is None


@pytest.mark.parametrize(
    ("now", "opens"),
    [
        ("2026-03-03T07:59:59", "2026-03-03T09:00"),  # an hour behind Berlin
        ("2026-03-03T11:00", "2026-03-10T09:00"),  # closed at this moment
        ("2026-03-01T12:00", "2026-03-03T09:00"),
        ("2026-03-02T23:30", "2026-03-03T09:00"),  # Tuesday in Berlin already
    ],
)
def test_a_closed_window_has_its_next_opening(now: str, opens: str) -> None:
    found = next_opening((TUESDAYS,), at(now))
    assert found == datetime.fromisoformat(opens).replace(tzinfo=BERLIN)
    assert found is not None
    assert found.tzname() == "CET"


def test_a_window_follows_summer_time() -> None:
    assert next_opening((TUESDAYS,), at("2026-06-02T07:00")) is None
    assert next_opening((TUESDAYS,), at("2026-06-02T10:00")) == at("2026-06-09T07:00")
    sundays = TUESDAYS.model_copy(update={"days": ("sun",), "opens": "01:00", "closes": "04:00"})
    assert next_opening((sundays,), at("2026-03-29T01:59")) is None  # 03:59 in Berlin, where 02:30 never was
    assert next_opening((sundays,), at("2026-03-29T02:00")) == at("2026-04-04T23:00")


@pytest.mark.parametrize("now", ["2026-03-06T22:00", "2026-03-07T01:59", "2026-03-08T01:59"])
def test_a_window_over_midnight_belongs_to_the_day_it_opens_on(now: str) -> None:
    assert next_opening((NIGHTS,), at(now)) is None


def test_the_first_of_several_windows_is_returned() -> None:
    assert next_opening((TUESDAYS, NIGHTS), at("2026-03-08T02:00")) == at("2026-03-10T08:00")
    assert next_opening((TUESDAYS, NIGHTS), at("2026-03-05T12:00")) == at("2026-03-06T22:00")


DAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def window(*days: Weekday, opens: str = "00:00", closes: str = "00:00", timezone: str = "UTC") -> Window:
    return Window(days=days, opens=opens, closes=closes, timezone=timezone)


@pytest.mark.parametrize(
    ("whole", "windows"),
    [
        (True, [window(*DAYS)]),
        (True, [window(*DAYS, opens="06:00", closes="06:00")]),
        (True, [window(*DAYS, opens="08:00", closes="20:00"), window(*DAYS, opens="19:00", closes="08:00")]),
        (True, [window(*DAYS[:6]), window("sun", opens="00:00", closes="23:59"), window("sun", opens="23:00")]),
        (False, [window(*DAYS, opens="00:00", closes="23:59")]),
        (False, [window(*DAYS[:6])]),
        (False, [window(*DAYS, closes="12:00"), window(*DAYS, opens="12:00", timezone="Europe/Berlin")]),
        (False, []),
    ],
)
def test_windows_of_maintenance_that_are_always_open_are_refused(*, whole: bool, windows: list[Window]) -> None:
    assert whole_week(windows) is whole
    given = {"maintenance": [each.model_dump() for each in windows]}
    with pytest.raises(ValueError, match="whole week") if whole else contextlib.nullcontext():
        LocalSettings.model_validate(given)
