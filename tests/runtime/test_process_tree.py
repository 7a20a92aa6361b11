"""The tree of the machine's processes: families, and members that SIGSTOP has stopped."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from observatory.runtime.process_tree import ProcessTree, is_stopped
from observatory.waiting import wait_until

SECONDS = 30
MISSING_PID = 2**22 + 1  # above the largest that Linux gives


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    """A process that has started another one: their ids."""
    command = ["sh", "-c", "sleep 600 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        try:
            assert parent.stdout
            yield parent.pid, int(parent.stdout.readline())
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def test_a_family_is_a_process_and_its_descendants(family: tuple[int, int]) -> None:
    """It starts with the process itself; this process' family has both."""
    processes = ProcessTree.read()

    assert list(processes.family(family[0])) == list(family)
    assert set(family) < set(processes.family(os.getpid()))


def test_a_stopped_descendant_is_found_until_it_continues(family: tuple[int, int]) -> None:
    """Its parent, which runs, is not among the stopped ones."""
    parent, child = family
    assert ProcessTree.read().stopped_of(parent) == []

    os.kill(child, signal.SIGSTOP)
    assert wait_until(lambda: is_stopped(child), SECONDS)
    assert ProcessTree.read().stopped_of(parent) == [child]

    os.kill(child, signal.SIGCONT)
    assert wait_until(lambda: not is_stopped(child), SECONDS)
    assert ProcessTree.read().stopped_of(parent) == []


def test_a_process_that_does_not_exist_has_no_family() -> None:
    """Nor has 0, which is the kernel's own."""
    processes = ProcessTree.read()

    assert [*processes.family(0), *processes.family(MISSING_PID), *processes.stopped_of(MISSING_PID)] == []
    assert not is_stopped(MISSING_PID)
