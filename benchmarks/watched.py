"""A command of a stack, watched from outside: when its programs began and ended, and when it printed a line."""

from __future__ import annotations

import json
import os
import re
import select
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from tests.support.checkout import Checkout

SCAN_S = 0.1  # a shorter program may be missed; its start is exact
TICKS = os.sysconf("SC_CLK_TCK")

now = partial(time.clock_gettime, time.CLOCK_BOOTTIME)  # the clock of the start times in /proc


@dataclass(frozen=True, kw_only=True)
class Span:
    """When a program began and ended, in seconds after the command's start."""

    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """Its duration."""
        return self.ended - self.began


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A finished command. Times are in seconds after its start.

    Attributes:
        seconds: of the whole command.
        document: that it printed as JSON.
        programs: by the names that they were watched for; one that outlives the command ends with it.
        lines: of its progress, with their times.
        started: of the command, as wall time.
    """

    seconds: float
    document: Any
    programs: Mapping[str, Span]
    lines: tuple[tuple[float, str], ...]
    started: float

    def printed(self, text: str) -> float:
        """Return the time of the first line with a text."""
        return next(at for at, line in self.lines if text in line)


def watch(checkout: Checkout, *arguments: str, programs: Mapping[str, str]) -> Watched:
    """Run a command of a stack to its end.

    Args:
        checkout: of the stack.
        arguments: of the command; `--output json` is added.
        programs: that it runs one after the other: a name, and a pattern of the command line.

    Raises:
        RuntimeError: the command failed, or one of the programs was not seen.
    """
    started, begun, over = time.time(), now(), threading.Event()
    process = checkout.start(*arguments, "--output", "json")
    assert process.stdout is not None
    assert process.stderr is not None
    with ThreadPoolExecutor() as pool:
        printing = pool.submit(_stamped, process.stderr, begun)
        watching = pool.submit(_spans, checkout, programs, begun, over)
        output = process.stdout.read()
        status = process.wait()
        seconds = now() - begun
        over.set()
    lines, spans = printing.result(), watching.result()
    text = "\n".join(line for _, line in lines)
    if status:
        raise RuntimeError(f"observatory {' '.join(arguments)} -> {status}\n{output}\n{text}")
    if missing := programs.keys() - spans.keys():
        raise RuntimeError(f"observatory {' '.join(arguments)} ran no {', '.join(missing)}\n{text}")
    return Watched(seconds=seconds, document=json.loads(output), programs=spans, lines=lines, started=started)


def _stamped(pipe: IO[str], begun: float) -> tuple[tuple[float, str], ...]:
    return tuple((now() - begun, line.rstrip("\n")) for line in pipe)


def _spans(checkout: Checkout, programs: Mapping[str, str], begun: float, over: threading.Event) -> dict[str, Span]:
    found: dict[str, Span] = {}
    for name, pattern in programs.items():
        if (pid := _find(checkout, pattern, over)) is None:
            break
        began = _start_of(pid) - begun
        _wait(pid, over)
        found[name] = Span(began=began, ended=now() - begun)
    return found


def _find(checkout: Checkout, pattern: str, over: threading.Event) -> int | None:
    while not over.wait(SCAN_S):
        for pid in checkout.processes():
            if re.search(pattern, _command_line(pid)):
                return pid
    return None


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _start_of(pid: int) -> float:
    """Return when a process began, see proc(5), /proc/PID/stat, field 22."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / TICKS


def _wait(pid: int, over: threading.Event) -> None:
    """Wait for the end of a process or of the command."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        while not (over.is_set() or select.select([descriptor], [], [], SCAN_S)[0]):
            continue
    finally:
        os.close(descriptor)
