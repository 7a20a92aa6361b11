"""Processes that are held by a descriptor: known after two looks, until one ends."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from observatory.scheduling.living import Living


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that run."""
    started = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def held() -> int:
    """Return how many descriptors of processes are open; others of this process come and go with the garbage."""
    return sum("pidfd" in os.path.realpath(each) for each in Path("/proc/self/fd").iterdir())


def test_processes_are_known_after_a_second_look_until_one_ends(processes: list[subprocess.Popen[bytes]]) -> None:
    """Those that another look finds count again from the start."""
    living, pids = Living(), [each.pid for each in processes]
    living.hold(pids)
    assert not living.known()
    living.hold(pids)
    assert living.known()

    processes[0].kill()
    processes[0].wait()
    assert not living.known()
    living.hold(pids)
    living.hold(pids)
    assert not living.known()

    living.hold(pids[1:])
    living.hold(pids[1:])
    assert living.known()
    living.hold(pids[:1])
    assert not living.known()


def test_no_process_is_never_known_and_no_descriptor_is_left(processes: list[subprocess.Popen[bytes]]) -> None:
    """A watcher holds processes for months."""
    living, before = Living(), held()
    for _ in range(3):
        living.hold([each.pid for each in processes])
        assert held() == before + len(processes)
        living.hold([processes[0].pid])
        living.hold([])
        living.hold([])
        assert not living.known()
    assert held() == before
