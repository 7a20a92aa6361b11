"""How long-running operations tell what they do; whoever shows it (a terminal, a log, nobody) is somebody else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where a task stands; WARNED is none, but a remark that stands for itself."""

    STARTED = "started"
    MOVED = "moved"
    DONE = "done"
    FAILED = "failed"
    WARNED = "warned"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One piece of news of a task: `detail` says what it is at, `seconds` how long it took when it ended."""

    task: str
    phase: Phase
    detail: str = ""
    seconds: float = 0.0


Reporter = Callable[[Progress], None]


def silent(_progress: Progress) -> None:
    """Show nothing."""


@contextmanager
def task(report: Reporter, name: str) -> Iterator[Callable[[str], None]]:
    """Report a task's start and end; yields the function that tells what it is at."""
    started = time.monotonic()
    report(Progress(task=name, phase=Phase.STARTED))
    try:
        yield lambda detail: report(Progress(task=name, phase=Phase.MOVED, detail=detail))
    except BaseException:
        report(Progress(task=name, phase=Phase.FAILED, seconds=time.monotonic() - started))
        raise
    report(Progress(task=name, phase=Phase.DONE, seconds=time.monotonic() - started))
