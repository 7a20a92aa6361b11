"""Shorter `for` and `keep_firing_for` of a checkout's rules, so that a proof need not wait for half an hour.

Nothing else of a rule changes: expressions, windows and thresholds are as they are. The weekend, which mutes
informational alerts, lies on days after the proof.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from monitoring import ALERTS
from monitoring.alertmanager import WEEKDAYS

LONGEST_S, SCALED = 120, "1m"  # what is longer becomes one minute
UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
PART = re.compile(r"(\d+)(ms|s|m|h|d)")
PATCH = """

from dataclasses import replace as _replace

_SCALED: dict[str, dict[str, str]] = {scaled!r}
ALERTS = tuple(_replace(alert, **_SCALED.get(alert.name, {{}})) for alert in ALERTS)
"""

WEEKEND = """

WEEKEND_DAYS = {days!r}
"""
AHEAD_DAYS = (3, 4)  # from today to the weekend of the proof


def seconds(duration: str) -> float:
    """Return a duration of Prometheus in seconds."""
    return sum(int(number) * UNITS[unit] for number, unit in PART.findall(duration))


def scaled_durations() -> dict[str, dict[str, str]]:
    """Return the durations that are shortened, by alert and attribute."""
    found: dict[str, dict[str, str]] = {}
    for alert in ALERTS:
        for attribute in ("pending", "keep_firing"):
            if seconds(getattr(alert, attribute)) > LONGEST_S:
                found.setdefault(alert.name, {})[attribute] = SCALED
    return found


def scale(root: Path) -> None:
    """Shorten the durations of the rules of a checkout, and move its weekend, before its stack is made."""
    today, names = datetime.now(UTC).weekday(), list(WEEKDAYS.values())
    weekend = tuple(names[(today + ahead) % len(names)] for ahead in AHEAD_DAYS)
    for module, patch in (
        ("registry", PATCH.format(scaled=scaled_durations())),
        ("alertmanager", WEEKEND.format(days=weekend)),
    ):
        file = root / f"monitoring/{module}.py"
        file.write_text(file.read_text() + patch)


def note(alert: str) -> str:
    """Return what was changed for the proof of an alert, for the table; empty if nothing was."""
    original = {each.name: each for each in ALERTS}[alert]
    names = {"pending": "for", "keep_firing": "keep_firing_for"}
    changed = scaled_durations().get(alert, {})
    notes = [f"`{names[key]}` {value} instead of {getattr(original, key)}" for key, value in changed.items()]
    return ", ".join([*notes, "the weekend lies on other days"] if original.severity == "info" else notes)
