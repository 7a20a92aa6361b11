"""The journal of deliveries: one line of JSON for each event, in a file that needs neither database nor network.

An entry is written to the file first, then passed to listeners (`Listener`), which must neither raise nor block.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import IO, Any

from observatory.documents.event_text import event_phase, event_text
from observatory.files.reserve import with_reserve
from observatory.progress import Phase, Progress, Reporter, tell
from observatory.security.actor import actor

LAST = 253_402_300_800  # the end of the year 9999, in seconds since the epoch
TAIL_BYTES = 64_000  # an entry of a gate has about 1,600


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One event.

    Attributes:
        id: of the entry; copies of the journal have each id once.
        at: seconds since the epoch.
        actor: who did it.
        event: its name, such as `shift`.
        details: JSON values; with `deployment` and `version` if the event belongs to a deployment.
    """

    id: str
    at: float
    actor: str
    event: str
    details: dict[str, Any]

    @property
    def line(self) -> str:
        """The entry as one line of JSON."""
        common = {"id": self.id, "at": self.at, "actor": self.actor, "event": self.event}
        return json.dumps({**common, **self.details})


Listener = Callable[[Entry], None]


@dataclass(frozen=True)
class FileJournal:
    """Writes each event to the file, reports it as progress, and passes it to the listeners."""

    file: Path
    report: Reporter
    listeners: list[Listener] = field(default_factory=list)

    def record(self, event: str, **details: Any) -> None:
        """Record an event; a file that cannot be written is reported as a warning. Never raises, as `report` may."""
        plain = json.loads(json.dumps(details, default=_plain))
        entry = Entry(id=uuid.uuid4().hex, at=time.time(), actor=actor(), event=event, details=plain)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with_reserve(self.file, lambda: self._append(entry))
        except OSError as error:
            tell(self.report, Progress(task=f"{self.file} cannot be written: {error.strerror}", phase=Phase.WARNED))
        tell(self.report, Progress(task=event_text(event, plain), phase=event_phase(event, plain)))
        for listener in self.listeners:
            listener(entry)

    def _append(self, entry: Entry) -> None:
        with self.file.open("a+b") as file:
            append(file, [entry])


def append(file: IO[bytes], added: Iterable[Entry]) -> None:
    """Append entries to an open journal; a half-written line, which a power failure can leave, is ended first."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - 1, 0))
    half = file.read(1) not in (b"", b"\n")
    file.write((b"\n" if half else b"") + b"".join(f"{entry.line}\n".encode() for entry in added))


def entries(file: Path) -> Iterator[Entry]:
    """Yield the entries of a journal, oldest first; a half-written or damaged line is skipped."""
    if not file.exists():
        return
    with file.open("rb") as lines:
        yield from _parsed(lines)


def last_entry(file: Path, event: str) -> Entry | None:
    """Return the newest entry of an event in the last `TAIL_BYTES` of a journal, None where there is none."""
    if not file.exists():
        return None
    with file.open("rb") as lines:
        lines.seek(max(0, lines.seek(0, os.SEEK_END) - TAIL_BYTES))
        found = [entry for entry in _parsed(lines) if entry.event == event]
    return found[-1] if found else None


def _parsed(lines: Iterable[bytes]) -> Iterator[Entry]:
    for line in lines:
        try:
            details = json.loads(line)
            found = Entry(**{key: details.pop(key) for key in ("id", "at", "actor", "event")}, details=details)
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
        if _is_sound(found):
            yield found


def _is_sound(entry: Entry) -> bool:
    """Return whether the fields have their types, and the time is one that a clock can have."""
    texts: tuple[object, ...] = (entry.id, entry.actor, entry.event)
    at: object = entry.at
    return all(isinstance(each, str) for each in texts) and isinstance(at, int | float) and 0 <= at < LAST


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
