"""Means of faults: daemons that stop, processes that die, sessions and users."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from observatory.errors import ObservatoryError
from proofs.alerts.monitored import Monitored
from proofs.alerts.round import PATIENCE_S
from tests.support.waiting import until

HOST_PROCESSES = ("watcher", "guard", "scheduler")  # each restarts the others
PAUSE_S = 0.05


def stopped(*daemons: str) -> Callable[[Monitored], contextlib.AbstractContextManager[None]]:
    """Return a fault that stops daemons; the supervisor does not start a daemon that was stopped on purpose."""

    @contextlib.contextmanager
    def fault(stack: Monitored) -> Iterator[None]:
        for name in daemons:
            stack.sandbox.supervisor.stop(name)
        try:
            yield
        finally:
            for name in daemons:
                with contextlib.suppress(ObservatoryError):
                    stack.sandbox.supervisor.start(name)

    return fault


def kill_host_processes(stack: Monitored) -> None:
    """Kill the processes of the host at once, so that none restarts another."""
    rows = {row["name"]: row["pid"] for row in stack.checkout.json("status")["daemons"]}
    for name in HOST_PROCESSES:
        os.kill(rows[name], signal.SIGKILL)


@contextlib.contextmanager
def repeated(act: Callable[[], object]) -> Iterator[None]:
    """Do something again and again, in a thread, until the end of the block."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(PAUSE_S):
            act()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def fires(stack: Monitored, alert: str) -> None:
    """Wait until an alert fires."""
    stack.wait_for(lambda: alert in stack.firing(), f"{alert} to fire", timeout_s=PATIENCE_S)


@contextlib.contextmanager
def control_group(controller: str, name: str) -> Iterator[Path]:
    """Yield a new control group of a controller of version 1, or of version 2 if the machine has no such hierarchy."""
    root = Path("/sys/fs/cgroup", controller)
    group = (root if root.is_dir() else root.parent) / name
    group.mkdir()
    try:
        yield group
    finally:
        until(lambda: not (group / "cgroup.procs").read_text(), f"the processes of {group} to end")
        group.rmdir()
