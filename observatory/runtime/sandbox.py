"""The sandbox: one view of one directory, in which every local daemon runs as a non-root user under one supervisor.

All that a local stack owns is below `home`, which the daemons see as `/srv`: `etc`, `data`, `run` (sockets), `log`,
`releases`. Removing `home` after `stop()` removes the stack. Network, processes and IPC are the host's: pids are the
same on both sides, and unix sockets below `home` can be used from the host (see `files.short_path`).

    sandbox = Sandbox(home: Path, rootfs: Path)
    sandbox.start() -> bool                            # True if it was not running; idempotent
    sandbox.stop(timeout=60) -> None                   # idempotent; nothing is left running
    sandbox.revive() -> bool                           # starts a dead supervisor, unless the sandbox was stopped
    sandbox.alive() -> bool
    sandbox.run(argv, *, env=, stdin=, timeout=, check=True) -> CompletedProcess[str]
    sandbox.run_attached(argv, *, env=) -> int
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from observatory.files.atomic import write_file
from observatory.runtime import bubblewrap, home_owners, mounts, sandbox_user
from observatory.runtime.attached import run_attached
from observatory.runtime.errors import SandboxError
from observatory.runtime.orphans import end_orphans
from observatory.runtime.processes import process_group
from observatory.runtime.programs import CONFIGURATION, CONFIGURATION_FILE, SUPERVISOR_PID_FILE
from observatory.runtime.sandbox_files import INSIDE, SandboxFiles
from observatory.runtime.supervisor import Supervisor
from observatory.waiting import wait_until

SUPERVISED = "/run/observatory"  # exists only in the supervisor's sandbox, not in that of a single command
PATH = "/usr/lib/postgresql/17/bin:/usr/bin:/usr/sbin"
UMASK = 0o077  # of the daemons too
ENVIRONMENT = {"PATH": PATH, "HOME": str(INSIDE), "LANG": "C.UTF-8", "USER": bubblewrap.USER}
START_SECONDS, STOP_SECONDS = 15, 60.0
STRAGGLER_SECONDS = 1.0  # for a daemon's own children to end after it
# Signals that end members without a supervisor, and the seconds to wait after each. An interrupt is PostgreSQL's fast
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
class Sandbox(SandboxFiles):
    """The sandbox over the directory `home` of the host, with programs from `rootfs`."""

    @functools.cached_property
    def supervisor(self) -> Supervisor:
        """The supervisor of this sandbox's daemons."""
        return Supervisor(files=self)

    def start(self) -> bool:
        """Start the supervisor, and with it every program applied before; return False if it was running.

        A sandbox that release 0.1.0 made as root is stopped first, and its files change their owner.

        Daemons of a killed supervisor or of a removed root filesystem are ended first, in order. Their files in `run`
        are removed: pids from before a reboot may belong to other processes.

        Raises:
            SandboxUnavailable: This machine allows no sandbox.
            SandboxError: The supervisor did not start.
        """
        with self.lock("sandbox"):
            running = self.former_owner is None and self.alive()
            if self.former_owner:
                self._leave_former_owner()
            write_file(self._started, str(self.rootfs), essential=True)
            if running:
                return False
            self._start_again()
            return True

    def revive(self) -> bool:
        """Start a supervisor that has died, on the root filesystem of the last start; raises as `start`.

        Returns False if it runs, or if the sandbox was stopped: a stopped sandbox stays stopped.
        """
        try:
            started_on = Path(self._started.read_text())
        except FileNotFoundError:
            return False
        if started_on != self.rootfs:
            return replace(self, rootfs=started_on).revive()
        with self.lock("sandbox"):
            if not self._started.exists() or self.alive():
                return False
            self._start_again()
            return True

    def stop(self, timeout: float = STOP_SECONDS) -> None:
        """Stop every daemon with its own signal, then the supervisor; kill what is left then, or after `timeout` s.

        Raises:
            SandboxError: A process did not end.
        """
        if not self.home.is_dir():
            return
        with self.lock("sandbox"):
            self._started.unlink(missing_ok=True)
            self._stop(timeout)

    def alive(self) -> bool:
        """Return whether the supervisor answers and can start programs: its root filesystem may have been removed."""
        try:
            return self.supervisor.answers() and not _has_lost_root(self.supervisor.pid())
        except SandboxError:  # it ended meanwhile
            return False

    def supervisor_pid(self) -> int | None:
        """Return the pid of a supervisor that runs, whether it answers or not; None if there is none."""
        try:
            pid = int((self.home / "run" / SUPERVISOR_PID_FILE).read_text())
        except (OSError, ValueError):
            return None
        return pid if _sees(pid, self.home.stat(), supervised=True) and _is_supervisor(pid) else None

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
        self.make_home()
        command = self._command(argv, bubblewrap.WITH_PARENT)
        variables = {**ENVIRONMENT, **(env or {})}
        with process_group(command, env=variables, stdin=subprocess.PIPE, umask=UMASK) as process:
            output, errors = process.communicate(stdin, timeout)
        result = subprocess.CompletedProcess(command, process.returncode, output, errors)
        if check:
            result.check_returncode()
        return result

    def run_attached(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
        """Run one command inside on this process's own standard streams, and return its exit status.

        It has a terminal of its own where this process has one. Secrets go into `env`, never into `argv`, which every
        user of the machine can read.
        """
        self.make_home()
        command = self._command(argv, bubblewrap.WITH_PARENT)
        return run_attached(command, {**ENVIRONMENT, **(env or {})})

    def processes(self) -> list[Process]:
        """Return the processes of the sandbox, by pid."""
        programs = {status.pid: status.name for status in self.supervisor.statuses() if status.pid}
        return [process for pid in self._members(supervised=True) if (process := _process(pid, programs))]

    def members(self) -> list[int]:
        """Return the pids of the sandbox's daemons, also of those without a supervisor."""
        return self._members(supervised=True)

    def _stop(self, timeout: float = STOP_SECONDS) -> None:
        if self.supervisor.answers():
            self.supervisor.stop_all()
            supervisor = self.supervisor.shutdown()
            home = self.home.stat()
            wait_until(lambda: not _is_member(supervisor, home), timeout)
            self._wait_gone(STRAGGLER_SECONDS)
        self._end(supervised=False)

    def _leave_former_owner(self) -> None:
        """Stop a sandbox of release 0.1.0, whose daemons are root for the kernel, and change its files' owner."""
        user = sandbox_user.draw()
        bubblewrap.check(self.rootfs, user)  # before anything stops
        home_owners.check_links(self.home)
        self._stop()
        home_owners.change_user(self.home, user)

    def _command(self, argv: Sequence[str], *options: str) -> list[str]:
        home = ("--tmpfs", "/run", "--bind", str(self.home), str(INSIDE), "--chdir", str(INSIDE))
        outside = mounts.options(mounts.recorded(self.home))
        return bubblewrap.command(self.rootfs, self.entry, argv, mounts=(*home, *outside, *options))

    @property
    def _started(self) -> Path:
        """A file with the root filesystem, from a start until the next stop."""
        return self.home / "lock" / "started"

    def _start_again(self) -> None:
        bubblewrap.check_complete(self.rootfs)  # otherwise daemons that serve would end, and none would start
        if (silent := self.supervisor_pid()) is not None:  # it would restart what is ended
            _signal([silent], [signal.SIGKILL])
        end_orphans(self, self.members)
        self._end(supervised=True)
        self._clear_stale_files()
        self._launch()

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
        if result.returncode == 0 and wait_until(self.alive, START_SECONDS, interval_s=0.02):
            return
        reason = (result.stderr + result.stdout).strip() or f"it did not answer within {START_SECONDS} s"
        raise SandboxError(
            f"the supervisor of {self.home} did not start: {reason}\nSee {self.home}/log/supervisord.log"
        )

    def _clear_stale_files(self) -> None:
        """Remove sockets and pid files of ended daemons; `start` calls it when no daemon runs."""
        stale = [path for path in (self.home / "run").rglob("*") if not path.is_dir()]
        for path in (*stale, *self.home.glob(SERVER_PID_FILES)):
            path.unlink(missing_ok=True)

    def _members(self, *, supervised: bool) -> list[int]:
        """Return the pids that see `home` as /srv; `supervised` leaves out one-shot commands.

        The mounts identify a process reliably. Environments are overwritten (PostgreSQL), parents die, sessions change.
        Where the root filesystem was removed, the kernel has detached the mounts: then a working directory does.
        """
        try:
            home = self.home.stat()
        except FileNotFoundError:
            return []
        import psutil  # noqa: PLC0415 - only where a sandbox is started, stopped or inspected

        pids = psutil.pids()
        lost = [pid for pid in pids if _has_lost_root(pid)]
        found = {pid for pid in pids if pid not in lost and _sees(pid, home, supervised=supervised)}
        return sorted(found | (set(_working_in(self.home, lost)) if lost else set()))

    def _wait_gone(self, timeout: float, *, supervised: bool = True) -> list[int]:
        """Wait until no member is left, at most `timeout` seconds; return those that are."""
        if not (left := self._members(supervised=supervised)):
            return []
        home = self.home.stat()

        def gone() -> bool:
            nonlocal left
            # Every process of the machine is looked at only when all that were found have ended.
            left = [pid for pid in left if _is_member(pid, home)] or self._members(supervised=supervised)
            return not left

        wait_until(gone, timeout)
        return self._members(supervised=supervised) if left else []

    def _end(self, *, supervised: bool) -> None:
        """End the members, and processes that they start meanwhile, by the signals of `ESCALATION` in turn."""
        left = self._members(supervised=supervised)
        for signals, seconds in ESCALATION:
            if left:
                _signal(left, signals)
                left = self._wait_gone(seconds, supervised=supervised)
        if left:
            raise SandboxError(f"processes {left} of {self.home} do not end after SIGKILL; see ps -fp {left[0]}")


def _is_supervisor(pid: int) -> bool:
    try:
        return b"/usr/bin/supervisord" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _has_lost_root(pid: int) -> bool:
    """Return whether the directory that is the root of `pid` was removed from the host."""
    try:
        return Path(f"/proc/{pid}/root").stat().st_nlink == 0
    except OSError:  # it has ended, or is another user's
        return False


def _working_in(home: Path, pids: Sequence[int]) -> Iterator[int]:
    """Yield those of `pids` that work in a directory of `home`, or share their mounts with one that does."""
    directories = {(status.st_dev, status.st_ino) for status in _statuses((home, *home.glob("*/"), *home.glob("*/*/")))}
    statuses = {pid: _statuses((Path(f"/proc/{pid}/cwd"), Path(f"/proc/{pid}/ns/mnt"))) for pid in pids}
    pairs = {pid: tuple((status.st_dev, status.st_ino) for status in found) for pid, found in statuses.items()}
    namespaces = {pair[-1] for pair in pairs.values() if pair and pair[0] in directories}
    yield from (pid for pid, pair in pairs.items() if pair and pair[-1] in namespaces)


def _statuses(paths: Sequence[Path]) -> list[os.stat_result]:
    """Return the status of each path that still exists."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            found.append(path.stat())
    return found


def _sees(pid: int, home: os.stat_result, *, supervised: bool) -> bool:
    """Return whether `pid` runs in a sandbox over `home`. Processes of the host's own root never do."""
    root = Path(f"/proc/{pid}/root")
    try:
        inside = not root.samefile("/") and os.path.samestat((root / "srv").stat(), home)
        return inside and (not supervised or (root / SUPERVISED.lstrip("/")).is_dir())
    except OSError:  # it has ended, or is another user's
        return False


def _is_member(pid: int, home: os.stat_result) -> bool:
    """Return whether a process that ran in a sandbox over `home` still runs."""
    return _sees(pid, home, supervised=False) or _has_lost_root(pid)


def _signal(pids: Sequence[int], signals: Sequence[signal.Signals]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            for number in signals:
                os.kill(pid, number)


def _process(pid: int, programs: Mapping[int, str]) -> Process | None:
    """Return what psutil reports of `pid`, None if it has ended."""
    import psutil  # noqa: PLC0415 - only where a sandbox is inspected

    try:
        process = psutil.Process(pid)
        family = [pid, *(parent.pid for parent in process.parents())]
        program = next((programs[member] for member in family if member in programs), None)
        return Process(pid=pid, program=program, command=process.name(), pss=process.memory_full_info().pss)
    except psutil.Error:  # a zombie has no memory
        return None
