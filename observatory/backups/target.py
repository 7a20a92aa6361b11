"""What a restore shall bring back: the newest state, a moment, a position in the WAL, or a backup."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from observatory.errors import WRONG_USAGE
from observatory.runtime import RuntimeFault

LATEST = "latest"
LABEL = re.compile(r"\d{8}-\d{6}F(?:_\d{8}-\d{6}[DI])?")
LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
TIMES = "Give a time with its time zone, such as 2026-11-29T14:30:00+01:00 or 2026-11-29T13:30:00Z."
EXAMPLES = (
    f"Give `{LATEST}`, a time such as 2026-11-29T14:30:00+01:00 or 2026-11-29T13:30:00Z, a position in the WAL such as "
    "0/3000060, or the label of a backup: `observatory backup list` shows the labels."
)


class InvalidTargetError(RuntimeFault):
    """The text names no target."""

    exit_code = WRONG_USAGE


@dataclass(frozen=True, kw_only=True)
class RecoveryTarget:
    """The state that a restore shall bring back. Make one with a method of the class.

    Attributes:
        kind: which of the other attributes has it.
        time: with every transaction that ended at this time or before, and no later one; in UTC.
        lsn: with all that was written before this byte of the WAL.
        label: at the end of this backup.
        timeline: on which `lsn` is; None: on the newest.
    """

    kind: Literal["latest", "time", "lsn", "label"]
    time: datetime | None = None
    lsn: int | None = None
    label: str | None = None
    timeline: int | None = None

    @classmethod
    def latest(cls) -> RecoveryTarget:
        """Return the newest state that the archive has."""
        return cls(kind="latest")

    @classmethod
    def at_time(cls, time: datetime) -> RecoveryTarget:
        """Return the state at a time.

        Raises:
            InvalidTargetError: the time has no time zone, or is outside of the calendar.
        """
        if time.utcoffset() is None:
            raise InvalidTargetError(f"{time.isoformat()} has no time zone", remedy=TIMES)
        try:
            return cls(kind="time", time=time.astimezone(UTC))
        except OverflowError:
            raise InvalidTargetError(f"{time.isoformat()} is outside of the calendar", remedy=TIMES) from None

    @classmethod
    def at_lsn(cls, lsn: int | str, *, timeline: int | None = None) -> RecoveryTarget:
        """Return the state at a position in the WAL: a number of bytes, or as PostgreSQL writes it.

        Raises:
            InvalidTargetError: the text is no position.
        """
        return cls(
            kind="lsn",
            lsn=lsn if isinstance(lsn, int) else parse_lsn(lsn),
            timeline=timeline,
        )

    @classmethod
    def of_backup(cls, label: str) -> RecoveryTarget:
        """Return the state at the end of a backup."""
        return cls(kind="label", label=label)

    @classmethod
    def parse(cls, text: str) -> RecoveryTarget:
        """Return the target that a text names.

        Raises:
            InvalidTargetError: it names none, or a time without a time zone.
        """
        text = text.strip()
        if text == LATEST:
            return cls.latest()
        if LABEL.fullmatch(text):
            return cls.of_backup(text)
        if LSN.fullmatch(text):
            return cls.at_lsn(text)
        return cls.at_time(parse_time(text, remedy=EXAMPLES))

    def __str__(self) -> str:
        """Return the target as `parse` reads it."""
        if self.time is not None:
            return format_time(self.time)
        return self.label or (LATEST if self.lsn is None else format_lsn(self.lsn))


def parse_time(text: str, *, remedy: str = TIMES) -> datetime:
    """Return a time in ISO 8601, with or without a time zone; `remedy` says what may be given.

    Raises:
        InvalidTargetError: it is none.
    """
    try:
        return datetime.fromisoformat(re.sub(r"\s*(?:UTC|[Zz])$", "+00:00", text))
    except (ValueError, OverflowError):
        raise InvalidTargetError(f"{text!r} is no time", remedy=remedy) from None


def parse_lsn(text: str) -> int:
    """Return a position in the WAL as a number of bytes.

    Raises:
        InvalidTargetError: the text is none.
    """
    found = LSN.fullmatch(text)
    if not found:
        raise InvalidTargetError(f"{text!r} is no position in the WAL", remedy=EXAMPLES)
    return (int(found[1], 16) << 32) + int(found[2], 16)


def format_lsn(lsn: int) -> str:
    """Return a position in the WAL as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def format_time(time: datetime) -> str:
    """Return a time in UTC to the microsecond."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
