"""Means of faults: daemons that stop, processes that die, sessions and users."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from observatory.errors import ObservatoryError
from proofs.alerts.monitored import Monitored

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
