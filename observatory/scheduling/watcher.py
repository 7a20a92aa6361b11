"""The watcher of a stack, `python -m observatory.scheduling.watcher ROOT STACK HOME ROOTFS`: keeps the stack running.

It starts the supervisor again when that has died, daemons that the supervisor has given up, the console, and the
scheduler and the guard, each of which in turn starts the watcher. It releases the disk reserve of the home when the
disk is nearly full, and fills the reserves when there is room. It sends a notice when the heartbeat of monitoring ends.
A process that SIGSTOP has stopped is continued. Each subject has a thread, so that none waits for another. The watcher
ends when the stack was stopped or its home removed, and never acts on a stopped stack.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from observatory.files.reserve import Reserve
from observatory.runtime import Sandbox
from observatory.runtime.process_tree import is_stopped
from observatory.runtime.supervisor import given_up
from observatory.scheduling.heartbeat import HeartbeatWatch
from observatory.scheduling.host_process import HostProcess, beat, identity, resume, wanted_file
from observatory.scheduling.living import Living
from observatory.scheduling.process_log import run_alone
from observatory.scheduling.scheduler_process import (
    WATCHER,
    console_process,
    guard_process,
    reserves,
    scheduler_process,
)
from observatory.scheduling.watch_metrics import WatchMetrics

LOG = logging.getLogger("observatory.watcher")
WATCH_SECONDS, BEAT_SECONDS = 0.5, 5.0
LOOK_SECONDS = 3.0  # between two looks at processes that run; supervisord gives up a daemon that it starts after 6 s
ANSWER_SECONDS = 3.0  # for an answer of the supervisor; it answers in milliseconds
HANG_SECONDS = 30.0  # without an answer, after which a running supervisor is killed: every daemon restarts then
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 30.0  # before a daemon that was given up is started again
FORGET_S = 120.0  # a daemon that has run so long starts with the first pause again
STOP_SECONDS = 50.0  # for a restart under way to finish


@dataclass(kw_only=True)
class Looks:
    """When to look at some processes: always while one is missing, otherwise every `LOOK_SECONDS`."""

    living: Living = field(default_factory=Living)
    last: float = 0.0

    def due(self, now: float, *, stops: bool) -> bool:
        """Return whether to look, also at a process that SIGSTOP has stopped if `stops`; the caller looks then."""
        undisturbed = self.living.known() and not (stops and any(is_stopped(pid) for pid in self.living.pids))
        if undisturbed and now - self.last < LOOK_SECONDS:
            return False
        self.last = now
        return True

    def found(self, pids: Collection[int]) -> None:
        """Take the processes that a look found; none where one is missing."""
        self.living.hold(pids)


@dataclass(kw_only=True)
class SupervisorWatch:
    """Keeps the supervisor running."""

    sandbox: Sandbox
    metrics: WatchMetrics
    silent_since: float | None = None
    looks: Looks = field(default_factory=Looks)

    def check(self) -> None:
        """Continue a stopped supervisor, kill one that hangs, and start one that has died.

        Raises:
            RuntimeFault: it does not start.
        """
        if not self.looks.due(time.monotonic(), stops=True):
            return
        pid = self.sandbox.supervisor_pid()
        if pid is not None and resume(pid):
            LOG.warning("the supervisor, process %s, was stopped: continued it", pid)
        if self.sandbox.supervisor.answers(ANSWER_SECONDS):
            self.silent_since, self.metrics.supervisor_up = None, True
            self.looks.found([pid] if pid else [])
            return
        self.looks.found([])
        self.metrics.supervisor_up = False
        self.silent_since = self.silent_since or time.monotonic()
        if pid is None or time.monotonic() - self.silent_since > HANG_SECONDS:
            self._revive(pid)

    def _revive(self, pid: int | None) -> None:
        if not wanted_file(self.sandbox).exists():
            return
        how = "has died" if pid is None else f"does not answer for {HANG_SECONDS:.0f} s"
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        begun = time.monotonic()
        if self.sandbox.revive():
            self.silent_since, self.metrics.supervisor_up = None, True
            self.metrics.supervisor_died()
            LOG.error("the supervisor %s: restarted it and its daemons in %.1f s", how, time.monotonic() - begun)


@dataclass(kw_only=True)
class _Pause:
    """How long a daemon waits for its next start: `seconds`, until `due`."""

    due: float
    seconds: float = FIRST_PAUSE_S


@dataclass(kw_only=True)
class DaemonWatch:
    """Starts daemons that the supervisor has given up: after 5 s, then 10, 20, and every 30 s."""

    sandbox: Sandbox
    metrics: WatchMetrics
    now: Callable[[], float] = time.monotonic
    pauses: dict[str, _Pause] = field(default_factory=dict)
    looks: Looks = field(default_factory=Looks)

    def check(self) -> None:
        """Start the daemons whose pause is over."""
        if not self.looks.due(self.now(), stops=False):
            return
        statuses = self.sandbox.supervisor.statuses()
        settled = all(each.pid or each.state == "STOPPED" for each in statuses)
        self.looks.found([each.pid for each in statuses if each.pid] if settled else [])
        stopped = given_up(self.sandbox, statuses)
        self.metrics.given_up = tuple(stopped)
        for name in stopped:
            pause = self.pauses.setdefault(name, _Pause(due=self.now() + FIRST_PAUSE_S))
            if self.now() >= pause.due:
                self._start(name, pause)
        for name in self.pauses.keys() - stopped:
            if self.now() - self.pauses[name].due > FORGET_S:
                del self.pauses[name]

    def start_all_now(self) -> None:
        """End every pause: what the daemons lacked may be there again."""
        self.pauses.clear()
        for name in given_up(self.sandbox, self.sandbox.supervisor.statuses()):
            self._start(name, self.pauses.setdefault(name, _Pause(due=self.now())))

    def _start(self, name: str, pause: _Pause) -> None:
        pause.seconds = min(2 * pause.seconds, LONGEST_PAUSE_S)
        pause.due = self.now() + pause.seconds
        if self.sandbox.supervisor.start(name):
            self.metrics.daemon_started(name)
            LOG.warning("the supervisor had given up %s: started it; next attempt in %.0f s", name, pause.seconds)


@dataclass(kw_only=True)
class DiskWatch:
    """Releases the reserve of the home on a full disk, and fills both reserves when there is room.

    The reserve of the state is released by a write that needs it (`observatory.files.reserve`).
    """

    reserves: Mapping[str, Reserve]
    metrics: WatchMetrics
    room: Callable[[], None]

    def check(self) -> None:
        """Compare the available space with the reserves."""
        home = self.reserves["home"]
        if home.is_low() and home.release():
            LOG.error("the disk is nearly full: released the reserve %s", home.path)
        filled = [each for each in self.reserves.values() if each.keep()]
        self.metrics.reserves = {name: reserve.held() for name, reserve in self.reserves.items()}
        if home in filled:
            self.room()


@dataclass(kw_only=True)
class HostProcessWatch:
    """Keeps another process of the host running."""

    process: HostProcess
    looks: Looks = field(default_factory=Looks)

    def check(self) -> None:
        """Start it if it has ended or hangs, and continue it if it is stopped."""
        if not self.looks.due(time.monotonic(), stops=True):
            return
        started, pid = self.process.keep(), self.process.pid()
        self.looks.found([pid] if pid else [])
        if started:
            LOG.warning("the %s had ended: started it", self.process.name)


class Watcher:
    """The threads of the process, and its heartbeat."""

    def __init__(self, sandbox: Sandbox, root: Path, stack: str) -> None:
        self._sandbox, self._home = sandbox, identity(sandbox.home)
        self._metrics = WatchMetrics.read(sandbox)
        self._ended = threading.Event()
        daemons = DaemonWatch(sandbox=sandbox, metrics=self._metrics)
        disk = DiskWatch(reserves=reserves(sandbox, root), metrics=self._metrics, room=daemons.start_all_now)
        scheduler = HostProcessWatch(process=scheduler_process(sandbox, root=root, stack=stack))
        guard = HostProcessWatch(process=guard_process(sandbox, root=root, stack=stack))
        console = HostProcessWatch(process=console_process(sandbox, root=root, stack=stack))
        supervisor = SupervisorWatch(sandbox=sandbox, metrics=self._metrics)
        self._supervisor = self._thread("supervisor", supervisor.check)
        others = {"daemons": daemons.check, "disk": disk.check, "scheduler": scheduler.check, "guard": guard.check}
        others["heartbeat"] = HeartbeatWatch.of(sandbox, root, stack).check
        others["console"] = console.check
        self._threads = [self._supervisor, *(self._thread(name, check) for name, check in others.items())]

    def run(self) -> None:
        """Watch until SIGTERM or SIGINT, or until the stack was stopped or its home removed."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._ended.set())
        for thread in self._threads:
            thread.start()
        LOG.info("watching %s", self._sandbox.home)
        while True:
            if identity(self._sandbox.home) != self._home or not wanted_file(self._sandbox).exists():
                break
            self._safely(lambda: beat(self._sandbox, WATCHER, self._metrics.text()))
            if self._ended.wait(BEAT_SECONDS):
                break
        self._ended.set()
        self._supervisor.join(STOP_SECONDS)  # a restart of the daemons is not left half done
        LOG.info("stopped")

    def _thread(self, name: str, check: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=self._repeat, args=(check,), name=name, daemon=True)

    def _repeat(self, check: Callable[[], None]) -> None:
        """Call `check` twice a second, with growing pauses while it fails."""
        pause = WATCH_SECONDS
        while not self._ended.wait(pause):
            if identity(self._sandbox.home) != self._home:
                return
            pause = WATCH_SECONDS if self._safely(check) else min(2 * pause, LONGEST_PAUSE_S)

    def _safely(self, work: Callable[[], None]) -> bool:
        """Do the work; return False if it failed, for example on a full disk, and log that."""
        try:
            work()
        except Exception:
            LOG.exception("%s failed", threading.current_thread().name)
            return False
        return True


def main(arguments: list[str]) -> None:
    """Watch the stack of the command line, unless another watcher does."""
    run_alone(WATCHER, LOG, arguments, lambda sandbox, root, stack: Watcher(sandbox, root, stack).run())


if __name__ == "__main__":
    main(sys.argv[1:])
