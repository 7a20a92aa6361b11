"""Progress of long-running operations. The library reports it; the caller shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Phase of a task. WARNED is a remark that belongs to no task."""

    STARTED = "started"
    MOVED = "moved"
    DONE = "done"
    FAILED = "failed"
    WARNED = "warned"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One progress report: `detail` is the current activity, `seconds` the duration once the task has ended."""

    task: str
    phase: Phase
    detail: str = ""
    seconds: float = 0.0


Reporter = Callable[[Progress], None]


def silent(_progress: Progress) -> None:
    """Show nothing."""


@contextmanager
def task(report: Reporter, name: str) -> Iterator[Callable[[str], None]]:
    """Report a task's start and end; yields the function that reports the current activity."""
    started = time.monotonic()
    report(Progress(task=name, phase=Phase.STARTED))
    try:
        yield lambda detail: report(Progress(task=name, phase=Phase.MOVED, detail=detail))
    except BaseException:
        report(Progress(task=name, phase=Phase.FAILED, seconds=time.monotonic() - started))
        raise
    report(Progress(task=name, phase=Phase.DONE, seconds=time.monotonic() - started))
