"""Progress of long-running operations. The caller's `Reporter` shows it, on a terminal or in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """The phase of a task; WARNED is a warning that belongs to no task, UNKNOWN a check without a verdict."""

    STARTED = "started"
    MOVED = "moved"
    DONE = "done"
    FAILED = "failed"
    WARNED = "warned"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report on a task: `detail` is its current step, `seconds` its duration once it has ended."""

    task: str
    phase: Phase
    detail: str = ""
    seconds: float = 0.0


Reporter = Callable[[Progress], None]


def silent(_progress: Progress) -> None:
    """Drop a report."""


def tell(report: Reporter, progress: Progress) -> None:
    """Report, and drop what the reporter raises, as at a closed pipe: work must not end because nobody reads about it.

    An interrupt during the report is raised.
    """
    with suppress(Exception):
        report(progress)


def warn(report: Reporter, text: str) -> None:
    """Report a warning that belongs to no task."""
    tell(report, Progress(task=text, phase=Phase.WARNED))


@contextmanager
def task(report: Reporter, name: str) -> Iterator[Callable[[str], None]]:
    """Report a task's start and end; yields the function that reports its current step."""
    started = time.monotonic()
    tell(report, Progress(task=name, phase=Phase.STARTED))
    try:
        yield lambda detail: tell(report, Progress(task=name, phase=Phase.MOVED, detail=detail))
    except BaseException:
        tell(report, Progress(task=name, phase=Phase.FAILED, seconds=time.monotonic() - started))
        raise
    tell(report, Progress(task=name, phase=Phase.DONE, seconds=time.monotonic() - started))
