"""The journal of deliveries: a line of JSON for each event, in a file that needs neither database nor network.

It is the first record; who else wants to know listens (`Listener`) and must neither raise nor take its time.
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

from observatory.progress import Phase, Progress, Reporter
from observatory.security.actor import actor

TAIL_BYTES = 64_000  # a look takes about 600


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One event.

    Attributes:
        id: of the entry, by which it is copied once only.
        at: seconds since the epoch.
        actor: who did it.
        event: what happened, such as `shift`.
        details: its numbers, as JSON has them; `deployment` and `version` where there is one.
    """

    id: str
    at: float
    actor: str
    event: str
    details: dict[str, Any]

    @property
    def line(self) -> str:
        """The entry as one line of JSON."""
        known = {"id": self.id, "at": self.at, "actor": self.actor, "event": self.event}
        return json.dumps({**known, **self.details})


Listener = Callable[[Entry], None]


@dataclass(frozen=True)
class FileJournal:
    """Takes down each event as a line, tells who watches, and whoever listens."""

    file: Path
    report: Reporter
    listeners: list[Listener] = field(default_factory=list)

    def record(self, event: str, **details: Any) -> None:
        """Take down what happened; a journal that cannot be written is told and never fails a deployment."""
        plain = json.loads(json.dumps(details, default=_plain))
        entry = Entry(id=uuid.uuid4().hex, at=time.time(), actor=actor(), event=event, details=plain)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a+b") as file:
                append(file, [entry])
        except OSError as error:
            self.report(Progress(task=f"{self.file} cannot be written: {error.strerror}", phase=Phase.WARNED))
        self.report(Progress(task=event, phase=Phase.DONE, detail=_told(plain)))
        for listener in self.listeners:
            listener(entry)


def append(file: IO[bytes], added: Iterable[Entry]) -> None:
    """Add entries to a journal that is open to append; a half line, which a power cut can leave, is ended first."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - 1, 0))
    half = file.read(1) not in (b"", b"\n")
    file.write((b"\n" if half else b"") + b"".join(f"{entry.line}\n".encode() for entry in added))


def entries(file: Path) -> Iterator[Entry]:
    """Yield what a journal has, oldest first; a line that a power cut has left half is passed over."""
    if not file.exists():
        return
    with file.open("rb") as lines:
        yield from _parsed(lines)


def last_entry(file: Path, event: str) -> Entry | None:
    """Return the newest entry of an event within the journal's last `TAIL_BYTES`; quick, for who looks each second."""
    if not file.exists():
        return None
    with file.open("rb") as lines:
        lines.seek(max(0, lines.seek(0, os.SEEK_END) - TAIL_BYTES))
        found = [entry for entry in _parsed(lines) if entry.event == event]
    return found[-1] if found else None


def _parsed(lines: Iterable[bytes]) -> Iterator[Entry]:
    for line in lines:
        try:
            known = json.loads(line)
            yield Entry(**{key: known.pop(key) for key in ("id", "at", "actor", "event")}, details=known)
        except (ValueError, KeyError, AttributeError):
            continue


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _told(details: dict[str, Any]) -> str:
    told = ((key, value) for key, value in details.items() if key != "deployment" and value not in (None, [], {}))
    return ", ".join(f"{key} {value}" for key, value in told)
