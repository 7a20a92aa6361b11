"""The guard of a stack, `python -m observatory.scheduling.guard ROOT STACK HOME ROOTFS`: keeps the watcher running.

The scheduler does so too. The guard is there for the moment in which both are killed: it starts the watcher, and the
watcher starts the scheduler. The watcher keeps the guard running. The guard ends when the stack was stopped or its home
removed.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from pathlib import Path

from observatory.runtime import Sandbox
from observatory.scheduling.host_process import beat, identity, wanted_file
from observatory.scheduling.process_log import run_alone
from observatory.scheduling.scheduler_process import GUARD, watcher_process

LOG = logging.getLogger("observatory.guard")
GUARD_SECONDS = 2.0
HEARTBEAT = "observatory_guard_heartbeat_timestamp_seconds"


def guard(sandbox: Sandbox, root: Path, stack: str) -> None:
    """Keep the watcher running until SIGTERM or SIGINT, or until the stack was stopped or its home removed."""
    home, watcher, ended = identity(sandbox.home), watcher_process(sandbox, root=root, stack=stack), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    LOG.info("guarding the watcher of %s", sandbox.home)
    while identity(sandbox.home) == home and wanted_file(sandbox).exists():
        try:
            beat(sandbox, GUARD, _metrics())
            if watcher.keep():
                LOG.warning("the watcher had ended: started it")
        except Exception:  # for example on a full disk
            LOG.exception("the guard failed and continues")
        if ended.wait(GUARD_SECONDS):
            break
    LOG.info("stopped")


def _metrics() -> str:
    """Return Prometheus' text format; it differs each time, so that the heartbeat is written."""
    what = f"# HELP {HEARTBEAT} Time of the guard's last heartbeat.\n# TYPE {HEARTBEAT} gauge\n"
    return f"{what}{HEARTBEAT} {time.time():.3f}\n"


def main(arguments: list[str]) -> None:
    """Guard the watcher of the command line's stack, unless another guard does."""
    run_alone(GUARD, LOG, arguments, guard)


if __name__ == "__main__":
    main(sys.argv[1:])
