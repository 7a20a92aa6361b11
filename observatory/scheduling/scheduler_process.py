"""A stack's scheduler as a process of the host: started apart from whoever starts it, found, and stopped.

It is no program of the sandbox's supervisor, since the sandbox has Debian's Python without this library. What finds it
is the lock that it holds, which ends with it.
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
SILENCE_SECONDS = 60  # without a sign of life it hangs: four of its beats
LOG_LINES = 10
# What it sees of its starter's environment: no passphrase, nothing of an engine.
INHERITED = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV"),
    "OBSERVATORY_ROOTFS",
)


def lock_file(sandbox: Sandbox) -> Path:
    """Return the lock that a stack's scheduler holds while it lives."""
    sandbox.make_directory("/srv/lock")
    return sandbox.host_path(f"/srv/lock/{NAME}.lock")


def scheduler_pid(sandbox: Sandbox) -> int | None:
    """Return the process of a stack's scheduler, None if there is none."""
    return locks.holder(lock_file(sandbox)) if sandbox.home.is_dir() else None


def scheduler_ready(sandbox: Sandbox) -> bool:
    """Return whether the scheduler lives, and has said so lately."""
    beat = RecordStore(sandbox=sandbox).last_beat()
    return scheduler_pid(sandbox) is not None and beat is not None and (now() - beat).total_seconds() < SILENCE_SECONDS


def start_scheduler(sandbox: Sandbox, *, root: Path, stack: str) -> int:
    """Start a stack's scheduler as a process of its own, instead of one that runs; return its pid once it works.

    Raises:
        DaemonFailed: it ended or did not get ready; with its last log lines.
    """
    _stop(lock_file(sandbox))  # but not a job of one that was killed: that one goes on
    begun = now()
    process = _launch(sandbox, root, stack)
    store = RecordStore(sandbox=sandbox)

    def ready() -> bool:
        beat = store.last_beat()
        return scheduler_pid(sandbox) == process.pid and beat is not None and beat >= begun

    if not wait_until(lambda: ready() or process.poll() is not None, START_SECONDS) or process.poll() is not None:
        how = f"ended, exit status {process.returncode}" if process.poll() is not None else "did not get ready"
        raise DaemonFailed(f"the scheduler {how}. The last lines of {log_file(sandbox, NAME)}:\n{_tail(sandbox)}")
    return process.pid


def stop_scheduler(sandbox: Sandbox) -> None:
    """Stop a stack's scheduler and what it has started, also jobs of one that was killed; idempotent.

    Raises:
        DaemonFailed: a process does not end, not even killed.
    """
    if not sandbox.home.is_dir():
        return
    _stop(lock_file(sandbox))
    for job in sorted(lock_file(sandbox).parent.glob("job-*.lock")):
        _stop(job)


def _launch(sandbox: Sandbox, root: Path, stack: str) -> subprocess.Popen[bytes]:
    """Start it in a session of its own and with no descriptor of ours: it outlives whoever is killed here."""
    with log_file(sandbox, NAME).open("ab") as log:
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
    """End whoever holds the lock, in order and then by force."""
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        if (pid := locks.holder(lock)) is None:
            return
        _signal(pid, lock, number)
        if wait_until(lambda: locks.holder(lock) is None, seconds):
            return
    if pid := locks.holder(lock):
        raise DaemonFailed(f"process {pid}, which holds {lock}, does not end, not even killed; see ps -fp {pid}")


def _signal(pid: int, lock: Path, number: signal.Signals) -> None:
    """Signal the process that holds the lock, and no other that has its pid by now."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            if locks.holder(lock) == pid:
                signal.pidfd_send_signal(process, signal.SIGCONT)  # a stopped one hears nothing
                signal.pidfd_send_signal(process, number)
        finally:
            os.close(process)


def _tail(sandbox: Sandbox) -> str:
    lines = log_file(sandbox, NAME).read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(f"  {line}" for line in lines) or "  (it wrote nothing)"
