"""Starts, finds and stops a stack's scheduler, a process of the host that is detached from the command that starts it.

The sandbox's supervisor does not run it, because the sandbox has Debian's Python without this library. The scheduler
is found by the lock file that it holds until it ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from observatory.files import locks
from observatory.runtime import DaemonFailed, Sandbox
from observatory.scheduling.records import RecordStore, log_file, now
from observatory.waiting import wait_until

NAME = "scheduler"
START_SECONDS, STOP_SECONDS, KILL_SECONDS = 30, 60, 10
SILENCE_SECONDS = 60  # without a heartbeat, after which the scheduler is not ready: four heartbeats
LOG_LINES = 10
# What it inherits of the environment: no passphrase and no variable of an engine.
INHERITED = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV"),
    "OBSERVATORY_ROOTFS",
)


def lock_file(sandbox: Sandbox) -> Path:
    """Return the lock file that a stack's scheduler holds while it runs."""
    sandbox.make_directory("/srv/lock")
    return sandbox.host_path(f"/srv/lock/{NAME}.lock")


def scheduler_pid(sandbox: Sandbox) -> int | None:
    """Return the process id of a stack's scheduler, None if none runs."""
    return locks.holder(lock_file(sandbox)) if sandbox.home.is_dir() else None


def scheduler_ready(sandbox: Sandbox) -> bool:
    """Return whether the scheduler runs and its last heartbeat is recent."""
    beat = RecordStore(sandbox=sandbox).last_beat()
    return scheduler_pid(sandbox) is not None and beat is not None and (now() - beat).total_seconds() < SILENCE_SECONDS


def start_scheduler(sandbox: Sandbox, *, root: Path, stack: str) -> int:
    """Start a stack's scheduler, after stopping a running one; return its pid when it is ready.

    Raises:
        DaemonFailed: it ended or did not become ready; with its last log lines.
    """
    _stop(lock_file(sandbox))  # not the jobs that a killed scheduler left running
    begun = now()
    process = _launch(sandbox, root, stack)
    store = RecordStore(sandbox=sandbox)

    def ready() -> bool:
        beat = store.last_beat()
        return scheduler_pid(sandbox) == process.pid and beat is not None and beat >= begun

    if not wait_until(lambda: ready() or process.poll() is not None, START_SECONDS) or process.poll() is not None:
        how = f"ended, exit status {process.returncode}" if process.poll() is not None else "did not become ready"
        raise DaemonFailed(f"the scheduler {how}. The last lines of {log_file(sandbox, NAME)}:\n{_tail(sandbox)}")
    return process.pid


def stop_scheduler(sandbox: Sandbox) -> None:
    """Stop a stack's scheduler and its jobs, also jobs that a killed scheduler left running; idempotent.

    Raises:
        DaemonFailed: a process does not end after SIGKILL.
    """
    if not sandbox.home.is_dir():
        return
    _stop(lock_file(sandbox))
    for job in sorted(lock_file(sandbox).parent.glob("job-*.lock")):
        _stop(job)


def _launch(sandbox: Sandbox, root: Path, stack: str) -> subprocess.Popen[bytes]:
    """Start it in a session of its own without inherited descriptors, so that it outlives this process."""
    with sandbox.open_append(f"/srv/log/{NAME}.log") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "observatory", NAME, "--environment", stack],
            cwd=root,
            env={name: os.environ[name] for name in INHERITED if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _stop(lock: Path) -> None:
    """Stop the process that holds the lock, by SIGTERM and then by SIGKILL."""
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        if (pid := locks.holder(lock)) is None:
            return
        _signal(pid, lock, number)
        if wait_until(lambda: locks.holder(lock) is None, seconds):
            return
    if pid := locks.holder(lock):
        raise DaemonFailed(f"process {pid}, which holds {lock}, does not end after SIGKILL; see ps -fp {pid}")


def _signal(pid: int, lock: Path, number: signal.Signals) -> None:
    """Signal the process that holds the lock, and no other that has reused its pid."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            if locks.holder(lock) == pid:
                signal.pidfd_send_signal(process, signal.SIGCONT)  # a stopped process handles no signal
                signal.pidfd_send_signal(process, number)
        finally:
            os.close(process)


def _tail(sandbox: Sandbox) -> str:
    with sandbox.open_append(f"/srv/log/{NAME}.log") as log:
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(f"  {line}" for line in lines) or "  (it wrote nothing)"
