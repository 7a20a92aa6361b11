"""The sandbox: one view of one directory, in which every local daemon runs as a non-root user under one supervisor.

All that a local stack owns is below `home`, which the daemons see as `/srv`: `etc`, `data`, `run` (sockets), `log`,
`releases`. Removing `home` after `stop()` removes the stack. Network, processes and IPC are the host's: pids are the
same on both sides, and unix sockets below `home` can be used from the host (see `files.short_path`).

    sandbox = Sandbox(home: Path, rootfs: Path)
    sandbox.start() -> bool                            # True if it was not running; idempotent
    sandbox.stop(timeout=60) -> None                   # idempotent; nothing is left running
    sandbox.alive() -> bool
    sandbox.run(argv, *, env=, stdin=, timeout=, check=True) -> CompletedProcess[str]
    sandbox.write_file(inside, content, *, mode=0o600) -> bool;  sandbox.make_directory(inside);  sandbox.adopt(inside)
    sandbox.host_path(inside) -> Path
    sandbox.processes() -> list[Process]
    sandbox.supervisor -> Supervisor                   # see observatory.runtime.supervisor

Safe under concurrency: threads and processes exclude each other by file locks in `home/lock`. Does not own: what the
daemons are (`observatory.nodes`) and when they run (`components.local`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from observatory.files import locks
from observatory.files.atomic import write_file
from observatory.files.ownership import change_owner
from observatory.runtime import bubblewrap
from observatory.runtime.errors import SandboxError
from observatory.runtime.processes import process_group
from observatory.runtime.supervisor import CONFIGURATION, CONFIGURATION_FILE, Supervisor

INSIDE = PurePosixPath("/srv")
DIRECTORIES = ("etc", "etc/supervisor.d", "data", "run", "log", "releases", "lock")
SUPERVISED = "/run/observatory"  # exists only in the long-lived sandbox, not in that of a one-shot command
PATH = "/usr/lib/postgresql/17/bin:/usr/bin:/usr/sbin"
ENVIRONMENT = {"PATH": PATH, "HOME": str(INSIDE), "LANG": "C.UTF-8", "USER": bubblewrap.USER}
START_SECONDS = 15
STRAGGLER_SECONDS = 1.0  # what a daemon's own children get to end after it
# How members without a supervisor are ended, and for how long each step is waited. An interrupt is PostgreSQL's fast
# shutdown, cheaper than crash recovery; background jobs of a shell ignore it.
ESCALATION = (((signal.SIGINT, signal.SIGTERM), 10.0), ((signal.SIGKILL,), 10.0))
SERVER_PID_FILES = "data/*/postmaster.pid"


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process of the sandbox: its program (None if the supervisor did not start it), command name and memory.

    `pss` is in bytes: memory shared between processes counts once over all of them.
    """

    pid: int
    program: str | None
    command: str
    pss: int


@dataclass(frozen=True)
class Sandbox:
    """The sandbox over the directory `home` of the host, with programs from `rootfs`."""

    home: Path
    rootfs: Path

    @functools.cached_property
    def supervisor(self) -> Supervisor:
        """The supervisor of this sandbox's daemons."""
        return Supervisor(sandbox=self)

    def start(self) -> bool:
        """Start the supervisor, and with it every program applied before; return False if it was running.

        Daemons whose supervisor was killed are ended first, and what they left in `run` is removed: pids of before a
        reboot belong to others by now.

        Raises:
            SandboxUnavailable: This machine allows no sandbox.
            SandboxError: The supervisor did not start.
        """
        with self.lock("sandbox"):
            if self.alive():
                return False
            self._end(supervised=True)
            self._clear_stale_files()
            self._launch()
            return True

    def stop(self, timeout: float = 60) -> None:
        """Stop every daemon, each in its own way, then the supervisor; end whatever is left then, or after `timeout` s.

        Raises:
            SandboxError: A process could not be ended even so.
        """
        if not self.home.is_dir():
            return
        with self.lock("sandbox"):
            if self.alive():
                self.supervisor.stop_all()
                supervisor = self.supervisor.shutdown()
                _wait(lambda: supervisor not in self._members(supervised=True), timeout)
                self._wait_gone(STRAGGLER_SECONDS)
            self._end(supervised=False)

    def alive(self) -> bool:
        """Return whether the supervisor answers."""
        return self.supervisor.answers()

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        timeout: float | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run one command inside and return its output; an exception here, such as an interrupt, kills it.

        Secrets go into `env` or `stdin`, never into `argv`, which every user of the machine can read.

        Raises:
            subprocess.CalledProcessError: It failed and `check` is set.
            subprocess.TimeoutExpired: It took more than `timeout` seconds and was killed.
        """
        self._make_home()
        command = self._command(argv, "--die-with-parent")
        with process_group(command, env={**ENVIRONMENT, **(env or {})}, stdin=subprocess.PIPE) as process:
            output, errors = process.communicate(stdin, timeout)
        result = subprocess.CompletedProcess(command, process.returncode, output, errors)
        if check:
            result.check_returncode()
        return result

    def host_path(self, inside: str | PurePosixPath) -> Path:
        """Return where the host sees `inside`, a path below /srv."""
        return self.home / PurePosixPath(inside).relative_to(INSIDE)

    def write_file(self, inside: str, content: str | bytes, *, mode: int = 0o600) -> bool:
        """Write a file below /srv, atomically and owned by the daemons' user; return whether anything changed."""
        self.make_directory(str(PurePosixPath(inside).parent))
        return write_file(self.host_path(inside), content, mode=mode, owner=self._entry.owner)

    def make_directory(self, inside: str) -> None:
        """Create a directory below /srv and its parents, private to the daemons' user."""
        self._make_home()
        path = self.host_path(inside)
        for directory in (*reversed(path.relative_to(self.home).parents), path.relative_to(self.home)):
            (self.home / directory).mkdir(mode=0o700, exist_ok=True)
            change_owner(self.home / directory, self._entry.owner)

    def adopt(self, inside: str) -> None:
        """Give the daemons' user all of a tree that the host put below /srv, such as an unpacked release."""
        top = self.host_path(inside)
        for path in (top, *top.rglob("*")):
            change_owner(path, self._entry.owner)

    def processes(self) -> list[Process]:
        """Return the processes of the sandbox, by pid."""
        programs = {status.pid: status.name for status in self.supervisor.statuses() if status.pid}
        return [process for pid in self._members(supervised=True) if (process := _process(pid, programs))]

    def members(self) -> list[int]:
        """Return the pids of the sandbox's daemons, also of those whose supervisor is gone."""
        return self._members(supervised=True)

    def lock(self, name: str) -> AbstractContextManager[int]:
        """Return the lock `name` of this sandbox, between threads and processes."""
        self._make_home()
        return locks.exclusive(self.home / "lock" / f"{name}.lock")

    @property
    def _entry(self) -> bubblewrap.Entry:
        return bubblewrap.entry(self.rootfs)

    def _make_home(self) -> None:
        for directory in (self.home, *(self.home / name for name in DIRECTORIES)):
            if not directory.is_dir():
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                change_owner(directory, self._entry.owner)

    def _command(self, argv: Sequence[str], *options: str) -> list[str]:
        mounts = ("--tmpfs", "/run", "--bind", str(self.home), str(INSIDE), "--chdir", str(INSIDE), *options)
        return bubblewrap.command(self.rootfs, self._entry, argv, mounts=mounts)

    def _launch(self) -> None:
        """Start the supervisor as a daemon: bubblewrap returns as soon as it runs in a session of its own."""
        self.write_file(CONFIGURATION_FILE, CONFIGURATION)
        argv = ["/usr/bin/supervisord", "--configuration", CONFIGURATION_FILE]
        result = subprocess.run(
            self._command(argv, "--dir", SUPERVISED),
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
            check=False,
        )
        deadline = time.monotonic() + START_SECONDS
        while result.returncode == 0 and time.monotonic() < deadline:
            if self.alive():
                return
            time.sleep(0.02)
        reason = (result.stderr + result.stdout).strip() or f"it did not answer within {START_SECONDS} s"
        raise SandboxError(
            f"the supervisor of {self.home} did not start: {reason}\nSee {self.home}/log/supervisord.log"
        )

    def _clear_stale_files(self) -> None:
        """Remove sockets and pid files of daemons that are gone: nobody runs here, which `start` made sure of."""
        stale = [path for path in (self.home / "run").rglob("*") if not path.is_dir()]
        for path in (*stale, *self.home.glob(SERVER_PID_FILES)):
            path.unlink(missing_ok=True)

    def _members(self, *, supervised: bool) -> list[int]:
        """Return the pids that see `home` as /srv; `supervised` leaves out one-shot commands.

        A process cannot shed its mounts, but environments are overwritten (PostgreSQL), parents die, sessions change.
        """
        try:
            home = self.home.stat()
        except FileNotFoundError:
            return []
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return sorted(pid for pid in pids if _sees(pid, home, supervised=supervised))

    def _wait_gone(self, timeout: float, *, supervised: bool = True) -> list[int]:
        """Wait until no member is left, at most `timeout` seconds; return those that are."""
        _wait(lambda: not self._members(supervised=supervised), timeout)
        return self._members(supervised=supervised)

    def _end(self, *, supervised: bool) -> None:
        """End the members, and what they start meanwhile, with ever stronger signals."""
        left = self._members(supervised=supervised)
        for signals, seconds in ESCALATION:
            if left:
                _signal(left, signals)
                left = self._wait_gone(seconds, supervised=supervised)
        if left:
            raise SandboxError(f"processes {left} of {self.home} do not end, not even killed; see ps -fp {left[0]}")


def _wait(condition: Callable[[], bool], timeout: float) -> None:
    """Wait until `condition` holds, at most `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def _sees(pid: int, home: os.stat_result, *, supervised: bool) -> bool:
    """Return whether `pid` lives in a sandbox over `home`. Processes of the host's own root never do."""
    root = Path(f"/proc/{pid}/root")
    try:
        inside = not root.samefile("/") and os.path.samestat((root / "srv").stat(), home)
        return inside and (not supervised or (root / SUPERVISED.lstrip("/")).is_dir())
    except OSError:  # it has ended, or is another user's
        return False


def _signal(pids: Sequence[int], signals: Sequence[signal.Signals]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            for number in signals:
                os.kill(pid, number)


def _process(pid: int, programs: Mapping[int, str]) -> Process | None:
    """Return what /proc tells about `pid`, None if it has ended."""
    directory = Path(f"/proc/{pid}")
    try:
        rollup = dict(line.split(":", 1) for line in (directory / "smaps_rollup").read_text().splitlines()[1:])
        command = (directory / "comm").read_text().strip()
        pss = int(rollup["Pss"].split()[0]) * 1024
    except (OSError, KeyError):  # KeyError: a zombie has no memory
        return None
    return Process(pid=pid, program=_program(pid, programs), command=command, pss=pss)


def _program(pid: int, programs: Mapping[int, str]) -> str | None:
    """Return the program whose process is `pid` or an ancestor of it."""
    while pid > 1:
        if pid in programs:
            return programs[pid]
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            return None
    return None
