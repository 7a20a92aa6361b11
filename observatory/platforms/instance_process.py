"""The processes of an instance under test, which may end at any moment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from observatory.delivery.environment import HostsError

if TYPE_CHECKING:
    import psutil

MIB = 2**20
MEMORY, FILES = "MiB of memory", "open files and connections"


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Raise HostsError where a process that is read inside the block has ended."""
    import psutil  # noqa: PLC0415 - only where it is used

    try:
        yield
    except (psutil.NoSuchProcess, IndexError):
        raise HostsError("the instance under test has ended: see its log") from None


def process_of(pid: int | None) -> psutil.Process:
    """Return the process with an id; None is one that has ended."""
    import psutil  # noqa: PLC0415 - only where it is used

    with running():
        if pid is None:
            raise psutil.NoSuchProcess(0)
        return psutil.Process(pid)


def family(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and those that it started."""
    with running():
        return [process, *process.children(recursive=True)]


def usage(process: psutil.Process) -> dict[str, float]:
    """Return what a process and those that it started hold: MiB of memory, and files, with connections, if readable."""
    import psutil  # noqa: PLC0415 - only where it is used

    held = {MEMORY: 0.0}
    for each in family(process):
        with running():
            held[MEMORY] += each.memory_info().rss / MIB
            with contextlib.suppress(psutil.AccessDenied):
                held[FILES] = held.get(FILES, 0.0) + each.num_fds()
    return held
