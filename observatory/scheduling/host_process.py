"""Processes of the host that belong to a stack: scheduler, watcher and guard, which keep each other running, console.

They are detached from the command that starts them. The sandbox's supervisor does not run them, because the sandbox has
Debian's Python without this library. A process is found by the lock file that it holds until it ends. It is ready while
its heartbeat, a file of metrics, is recent. From `up` to `down` a file records that they should run. Starts and stops
happen under one lock, `changing`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from observatory.files import locks
from observatory.files.locks import FileLockHeldError
from observatory.files.reserve import FULL
from observatory.nodes import Paths
from observatory.runtime import DaemonFailed, Sandbox
from observatory.runtime.process_tree import is_stopped
from observatory.waiting import wait_until

METRICS = Paths().textfiles
START_SECONDS, STOP_SECONDS, KILL_SECONDS = 30, 60, 10
SILENCE_SECONDS = 60  # without a heartbeat, after which a process is not ready
LONGEST_LOOK_S = 5.0  # of silence that two looks in a row prove; between them this process may have been stopped, too
LOG_LINES = 10
# What a process inherits of the environment: no passphrase and no variable of an engine.
INHERITED = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV")
ROOTFS = "OBSERVATORY_ROOTFS"
_children: list[subprocess.Popen[bytes]] = []  # that run, so that the ones that have ended are waited for


def wanted_file(sandbox: Sandbox) -> Path:
    """Return the file that exists while the host processes of a stack should run."""
    return sandbox.home / "lock" / "host-processes.wanted"


def changing(sandbox: Sandbox) -> AbstractContextManager[int]:
    """Return the lock under which host processes are started and stopped; it waits."""
    return sandbox.lock("host-processes")


@dataclass(kw_only=True)
class Silence:
    """How long a process has shown no change to one that looks at it often.

    A machine whose time changes, or that was suspended, is no silence: the one that looks was suspended, too.
    """

    shown: object = None
    looked: float = 0.0
    seconds: float = 0.0

    def with_look(self, shown: object) -> float:
        """Return the seconds of silence after a look, which has `shown` something new or the same again."""
        now = time.monotonic()
        self.seconds = self.seconds + min(now - self.looked, LONGEST_LOOK_S) if shown == self.shown else 0.0
        self.shown, self.looked = shown, now
        return self.seconds


@dataclass(frozen=True, kw_only=True)
class HostProcess:
    """One process: its name, its arguments after `python -m`, and the checkout that it works in."""

    name: str
    arguments: Sequence[str]
    sandbox: Sandbox
    root: Path
    silence: Silence = field(default_factory=Silence, compare=False)

    def pid(self) -> int | None:
        """Return the id of the process, None if it does not run."""
        return process_id(self.sandbox, self.name)

    def ready(self) -> bool:
        """Return whether it runs and its last heartbeat is recent."""
        return process_ready(self.sandbox, self.name)

    def start(self) -> int:
        """Start it, after stopping a running one; return its pid when it is ready. The caller holds `changing`.

        Raises:
            DaemonFailed: it ended or did not become ready; with its last log lines.
        """
        stop_holder(lock_file(self.sandbox, self.name))
        begun, process = datetime.now(UTC), self._launch()

        def ready() -> bool:
            beat = last_beat(self.sandbox, self.name)
            return self.pid() == process.pid and beat is not None and beat >= begun

        if not wait_until(lambda: ready() or process.poll() is not None, START_SECONDS) or process.poll() is not None:
            how = f"ended, exit status {process.returncode}" if process.poll() is not None else "did not become ready"
            log, tail = log_file(self.sandbox, self.name), _tail(self.sandbox, self.name)
            raise DaemonFailed(f"the {self.name} {how}. The last lines of {log}:\n{tail}")
        return process.pid

    def keep(self) -> bool:
        """Start it again if it has ended or hangs, and continue it if it is stopped; return whether it was started.

        Does nothing while a command starts or stops the host processes, or after they were stopped. Raises as `start`.
        """
        if not wanted_file(self.sandbox).exists():
            return False
        if self._lives():
            return False
        try:
            with locks.claim(self.sandbox.home / "lock" / "host-processes.lock"):
                if not wanted_file(self.sandbox).exists() or self._lives():
                    return False
                self.start()
                return True
        except FileLockHeldError:
            return False

    def _lives(self) -> bool:
        """Continue it if it is stopped; return whether it runs and does not hang."""
        pid = self.pid()
        if pid is None:
            return False
        resume(pid)
        return self.silence.with_look((pid, last_beat(self.sandbox, self.name))) < SILENCE_SECONDS

    def _launch(self) -> subprocess.Popen[bytes]:
        """Start it in a session of its own without inherited descriptors, so that it outlives this process."""
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        with self.sandbox.open_append(log_name(self.name)) as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *self.arguments],
                cwd=self.root,
                env={**environment, ROOTFS: str(self.sandbox.rootfs)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _children[:] = [child for child in (*_children, process) if child.poll() is None]
        return process


def identity(directory: Path) -> tuple[int, int] | None:
    """Return what distinguishes a directory from another of the same path; None if it does not exist."""
    try:
        found = directory.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def lock_file(sandbox: Sandbox, name: str) -> Path:
    """Return the lock file that the process `name` holds while it runs."""
    sandbox.make_directory("/srv/lock")
    return sandbox.host_path(f"/srv/lock/{name}.lock")


def process_id(sandbox: Sandbox, name: str) -> int | None:
    """Return the id of the process `name` of a stack, None if it does not run."""
    return locks.holder(lock_file(sandbox, name)) if sandbox.home.is_dir() else None


def process_ready(sandbox: Sandbox, name: str) -> bool:
    """Return whether the process `name` runs and its last heartbeat is recent."""
    beat = last_beat(sandbox, name)
    silence = (datetime.now(UTC) - beat).total_seconds() if beat else SILENCE_SECONDS
    return process_id(sandbox, name) is not None and silence < SILENCE_SECONDS


def last_beat(sandbox: Sandbox, name: str) -> datetime | None:
    """Return the time of the last heartbeat of the process `name`; None without any."""
    file = sandbox.host_path(f"{METRICS}/{name}.prom")
    return datetime.fromtimestamp(file.stat().st_mtime, UTC) if file.exists() else None


def beat(sandbox: Sandbox, name: str, metrics: str) -> None:
    """Write a heartbeat, which is also the metrics of the process `name` for node_exporter.

    On a full disk the existing file is overwritten, which takes no space. A removed home is not created again.
    """
    if not sandbox.home.is_dir():
        return
    inside = f"{METRICS}/{name}.prom"
    try:
        sandbox.write_file(inside, metrics)
    except OSError as error:
        if error.errno not in FULL:
            raise
        sandbox.overwrite(inside, metrics)


def log_name(name: str) -> str:
    """Return the log of the process `name`, below /srv. It is rotated with the daemons' logs."""
    return f"/srv/log/{name}.log"


def log_file(sandbox: Sandbox, name: str) -> Path:
    """Return a log file in the daemons' log directory, created where missing and owned by the daemons' user."""
    sandbox.open_append(log_name(name)).close()
    return sandbox.host_path(log_name(name))


def stop_holder(lock: Path) -> None:
    """Stop the process that holds a lock file, by SIGTERM and then by SIGKILL.

    Raises:
        DaemonFailed: it does not end after SIGKILL.
    """
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        if (pid := locks.holder(lock)) is None:
            return
        _signal(pid, lock, number)
        if wait_until(lambda: locks.holder(lock) is None, seconds):
            return
    if pid := locks.holder(lock):
        raise DaemonFailed(f"process {pid}, which holds {lock}, does not end after SIGKILL; see ps -fp {pid}")


def resume(pid: int) -> bool:
    """Continue a process that SIGSTOP has stopped; return whether it was stopped."""
    if is_stopped(pid):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)
            return True
    return False


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


def _tail(sandbox: Sandbox, name: str) -> str:
    with sandbox.open_read(log_name(name)) as log:
        lines = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(f"  {line}" for line in lines) or "  (it wrote nothing)"
