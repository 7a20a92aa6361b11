"""Deployment windows: the hours of the week in which minor and major versions may be deployed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")  # as datetime counts them
DAY_MINUTES = 24 * 60
WEEK_MINUTES = 7 * DAY_MINUTES


def _clock_time(value: object) -> object:
    # Without quotes YAML reads 10:00 as the number 600.
    if not isinstance(value, str):
        raise ValueError('expected a time in quotes, such as "10:00"')  # noqa: TRY004 - pydantic reports ValueError only
    return value


def _time_zone(name: str) -> str:
    _zone(name)
    return name


def _zone(name: str) -> tzinfo:
    """Return a time zone; UTC works without a time zone database."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415 - every command reads settings, few a window

    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(
            f"{name!r} is not a time zone of this machine's database; expected a name such as Europe/Berlin or UTC"
        ) from error


# The areas of the time zones in Debian's package tzdata, each with its former names: those are in tzdata-legacy.
_FORMER_NAMES: Mapping[str, tuple[str, ...]] = {
    "Africa": ("Asmera",),
    "America": (
        *("Argentina/ComodRivadavia", "Buenos_Aires", "Catamarca", "Cordoba", "Fort_Wayne", "Godthab", "Indianapolis"),
        *("Jujuy", "Knox_IN", "Louisville", "Mendoza", "Rosario"),
    ),
    "Antarctica": ("South_Pole",),
    "Arctic": (),
    "Asia": (
        *("Ashkhabad", "Calcutta", "Choibalsan", "Chungking", "Dacca", "Katmandu", "Macao", "Rangoon", "Saigon"),
        *("Thimbu", "Ujung_Pandang", "Ulan_Bator"),
    ),
    "Atlantic": ("Faeroe",),
    "Australia": ("ACT", "LHI", "NSW", "North", "Queensland", "South", "Tasmania", "Victoria", "West"),
    "Etc": (),
    "Europe": ("Kiev", "Uzhgorod", "Zaporozhye"),
    "Indian": (),
    "Pacific": ("Enderbury", "Ponape", "Truk"),
}


def is_known_in_sandbox(zone: str) -> bool:
    """Return whether the daemons of a local stack know a time zone of this machine's database."""
    area, _, name = zone.partition("/")
    return zone in ("UTC", "GMT") or (area in _FORMER_NAMES and name not in ("", *_FORMER_NAMES[area]))


ClockTime = Annotated[str, BeforeValidator(_clock_time), Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]


class Window(BaseModel):
    """Hours on some days of the week, in a time zone; a window that closes before it opens ends on the next day."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    days: Annotated[tuple[Weekday, ...], Field(min_length=1)]
    opens: ClockTime
    closes: ClockTime
    timezone: Annotated[str, AfterValidator(_time_zone)] = "UTC"

    def around(self, now: datetime) -> Iterator[tuple[datetime, datetime]]:
        """Yield (opening, closing) in UTC, from the day before `now` to a week after."""
        zone = _zone(self.timezone)
        opens, closes = time.fromisoformat(self.opens), time.fromisoformat(self.closes)
        lasts = timedelta(days=1 if closes <= opens else 0)
        today = now.astimezone(zone).date()
        for days in range(-1, 8):
            date = today + timedelta(days=days)
            if WEEKDAYS[date.weekday()] in self.days:
                # In UTC: Python compares times of one zone by the clock, which ignores changes to summer time.
                begin = datetime.combine(date, opens, zone).astimezone(UTC)
                yield begin, datetime.combine(date + lasts, closes, zone).astimezone(UTC)


def next_opening(windows: Sequence[Window], now: datetime) -> datetime | None:
    """Return when the next window opens, in its own time zone; None if one is open or there are no windows.

    Args:
        windows: of a stack.
        now: a time with a zone.
    """
    coming: list[datetime] = []
    for window in windows:
        for opens, closes in window.around(now):
            if opens <= now < closes:
                return None
            if opens > now:
                coming.append(opens.astimezone(_zone(window.timezone)))
    return min(coming, default=None)


def whole_week(windows: Sequence[Window]) -> bool:
    """Return whether one is always open, of those in one time zone."""
    open_minutes: dict[str, set[int]] = {}
    for window in windows:
        opens, closes = (int(clock[:2]) * 60 + int(clock[3:]) for clock in (window.opens, window.closes))
        lasts = closes - opens if closes > opens else closes - opens + DAY_MINUTES
        for day in window.days:
            begin = WEEKDAYS.index(day) * DAY_MINUTES + opens
            minutes = (minute % WEEK_MINUTES for minute in range(begin, begin + lasts))
            open_minutes.setdefault(window.timezone, set()).update(minutes)
    return any(len(minutes) == WEEK_MINUTES for minutes in open_minutes.values())
