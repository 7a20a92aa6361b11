"""The processes of the machine and which started which, read once: a look for one process' children reads them all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

STOPPED = "T"  # by SIGSTOP, https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html


@dataclass(frozen=True, kw_only=True)
class ProcessTree:
    """The state of each process, and the ids of those that it started."""

    states: Mapping[int, str]
    children: Mapping[int, list[int]]

    @classmethod
    def read(cls) -> Self:
        """Return the processes that exist now."""
        states: dict[int, str] = {}
        children: dict[int, list[int]] = {}
        for pid in (int(each.name) for each in os.scandir("/proc") if each.name.isdigit()):
            if found := _state_and_parent(pid):
                states[pid] = found[0]
                children.setdefault(found[1], []).append(pid)
        return cls(states=states, children=children)

    def family(self, pid: int) -> Iterator[int]:
        """Yield a process and its descendants; none if it did not exist."""
        left = [pid] if pid in self.states else []
        while left:
            yield (each := left.pop(0))
            left += self.children.get(each, ())

    def stopped_of(self, pid: int) -> list[int]:
        """Return which of a process and its descendants SIGSTOP has stopped."""
        return [each for each in self.family(pid) if self.states[each] == STOPPED]


def is_stopped(pid: int) -> bool:
    """Return whether SIGSTOP has stopped a process; the kernel still accepts connections for it."""
    found = _state_and_parent(pid)
    return found is not None and found[0] == STOPPED


def _state_and_parent(pid: int) -> tuple[str, int] | None:
    """Return the state of a process and the id of its parent; None if it has ended."""
    with contextlib.suppress(OSError):
        state, parent = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
        return state, int(parent)
    return None
