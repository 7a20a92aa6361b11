"""Values as text: times, durations, sizes and numbers with their units."""

from __future__ import annotations

import math
from datetime import UTC, datetime

KIB = 1024
MINUTE, HOUR, DAY = 60, 3600, 86_400
BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
SMALL = 0.01


def moment(time: datetime | float | None) -> datetime | None:
    """Return a time in UTC, also of seconds since the epoch."""
    return datetime.fromtimestamp(time, UTC) if isinstance(time, (int, float)) else time and time.astimezone(UTC)


def clock(time: datetime | float | None) -> str:
    """Return a time as text, in UTC."""
    at = moment(time)
    return f"{at:%Y-%m-%d %H:%M:%S}" if at else "-"


def ago(time: datetime | float | None) -> str:
    """Return how long ago a time was, or how long it is until then."""
    at = moment(time)
    if at is None:
        return "-"
    seconds = (datetime.now(UTC) - at).total_seconds()
    return f"in {duration(-seconds)}" if seconds < 0 else f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    """Return a duration in its largest unit, with two digits where one is not enough."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for size, unit in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= size:
            return f"{_short(seconds / size)} {unit}"
    return f"{_short(seconds)} s"


def size(number: float) -> str:
    """Return a number of bytes with a binary unit."""
    factor, unit = scale("bytes", abs(number))
    return f"{_short(number * factor)} {unit}"


def scale(unit: str, largest: float) -> tuple[float, str]:
    """Return the factor and the name of the unit in which values of a panel, up to `largest`, are read best."""
    if unit in {"bytes", "bytes per second"}:
        power = min(int(math.log(largest, KIB)), len(BYTES) - 1) if 1 <= largest < math.inf else 0
        return KIB**-power, BYTES[power] + ("/s" if unit == "bytes per second" else "")
    if unit == "seconds":
        sizes = ((2 * DAY, DAY, "d"), (2 * HOUR, HOUR, "h"), (2 * MINUTE, MINUTE, "min"), (1, 1, "s"))
        return next(((1 / size, name) for limit, size, name in sizes if largest >= limit), (1000.0, "ms"))
    return {"ratio": (100.0, "%"), "percent": (1.0, "%"), "per second": (1.0, "/s")}.get(unit, (1.0, ""))


def value(number: float, unit: str) -> str:
    """Return the value of a panel with its unit."""
    if math.isnan(number):
        return "-"
    if unit == "timestamp":
        return ago(number)
    factor, name = scale(unit, abs(number))
    return f"{_short(number * factor)} {name}".strip()


def _short(number: float) -> str:
    """Return a number with about three digits."""
    if number == 0 or not math.isfinite(number):
        return f"{number:.0f}"
    if abs(number) < SMALL:
        return f"{number:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(number))))
    text = f"{number:,.{min(digits, 3)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
