"""The watcher starts daemons that were given up, continues what is stopped, and acts on no stopped stack."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

from observatory.files import locks
from observatory.files.reserve import Reserve
from observatory.runtime import DaemonFailed, Program, Sandbox
from observatory.runtime.process_tree import is_stopped
from observatory.runtime.supervisor import Supervisor
from observatory.scheduling import host_process
from observatory.scheduling.host_process import HostProcess, changing, last_beat, stop_holder, wanted_file
from observatory.scheduling.scheduler_process import guard_process, stop_scheduler, watcher_process
from observatory.scheduling.watch_metrics import WatchMetrics
from observatory.scheduling.watcher import LOOK_SECONDS, DaemonWatch, DiskWatch, HostProcessWatch, SupervisorWatch
from tests.runtime.test_sandbox import kill_supervisor
from tests.runtime.test_supervisor import until
from tests.support.checkout import SOURCE
from tests.support.clock import own_clock
from tests.support.host_processes import wait_for_ended
from tests.support.small_disk import fill, small_disk
from tests.support.waiting import PATIENCE_S
from tests.support.waiting import until as wait_until

pytestmark = pytest.mark.slow

FRAIL = Program(
    name="frail", command=("sh", "-c", "test -e /srv/data/space || exit 3; exec sleep 1000"), start_retries=0
)


@pytest.fixture
def started(tmp_path: Path, rootfs: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path / "home", rootfs)
    sandbox.start()
    wanted_file(sandbox).touch()
    yield sandbox
    sandbox.stop(timeout=10)


def halt(pid: int) -> None:
    """Stop a process, and wait until it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that starts becomes ready, and a supervisor that runs answers, however busy the machine is."""
    monkeypatch.setattr(host_process, "START_SECONDS", PATIENCE_S)
    monkeypatch.setattr("observatory.scheduling.watcher.ANSWER_SECONDS", PATIENCE_S)


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


def failed(sandbox: Sandbox, program: Program) -> None:
    sandbox.supervisor.apply(program)
    until(lambda: sandbox.supervisor.status(program.name).state in {"FATAL", "EXITED"})


def test_a_daemon_that_was_given_up_is_started_after_growing_pauses_until_it_runs(started: Sandbox) -> None:
    started.supervisor.apply(FRAIL)
    until(lambda: started.supervisor.status("frail").state == "FATAL")  # after EXITED it is started once more
    clock, metrics = Clock(), WatchMetrics()
    watch = DaemonWatch(sandbox=started, metrics=metrics, now=clock)
    starts: list[int] = []
    for second in range(120):
        clock.time = float(second)
        watch.check()
        if metrics.starts.get("frail", 0) > len(starts):
            starts.append(second)
            until(lambda: started.supervisor.status("frail").state == "FATAL")
    assert starts == [5, 15, 35, 65, 95]
    assert 'observatory_daemon_given_up{daemon="frail"} 1' in metrics.text()

    started.write_file("/srv/data/space", "")
    watch.start_all_now()
    until(lambda: started.supervisor.status("frail").state == "RUNNING")
    watch.check()
    assert 'observatory_daemon_starts_total{daemon="frail"} 6' in metrics.text()
    assert "observatory_daemon_given_up{" not in metrics.text()


def test_a_daemon_that_was_stopped_or_runs_once_is_left_alone(started: Sandbox) -> None:
    failed(started, Program(name="once", command=("false",), restart=False, start_retries=0))
    started.supervisor.apply(Program(name="stopped", command=("sleep", "1000")))
    started.supervisor.stop("stopped")
    clock, metrics = Clock(), WatchMetrics()
    watch = DaemonWatch(sandbox=started, metrics=metrics, now=clock)
    for clock.time in (0.0, 100.0):
        watch.check()
    watch.start_all_now()
    assert metrics.starts == {}
    assert {each.state for each in started.supervisor.statuses()} <= {"STOPPED", "FATAL", "EXITED"}


def counted(monkeypatch: pytest.MonkeyPatch, owner: type, method: str) -> list[object]:
    """Return a list that grows with each call of a method."""
    calls: list[object] = []
    original = getattr(owner, method)

    def call(self: object, *arguments: object) -> object:
        calls.append(self)
        return original(self, *arguments)

    monkeypatch.setattr(owner, method, call)
    return calls


def test_daemons_that_run_are_asked_for_every_three_seconds_and_at_once_when_one_ends(
    started: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "other"):
        started.supervisor.apply(Program(name=name, command=("sleep", "1000")))
    started.supervisor.apply(Program(name="stopped", command=("sleep", "1000")))
    started.supervisor.stop("stopped")
    until(lambda: [each.state for each in started.supervisor.statuses()] == ["RUNNING", "RUNNING", "STOPPED"])
    first = started.supervisor.status("one").pid
    assert first
    clock, asked = Clock(), counted(monkeypatch, Supervisor, "statuses")
    watch = DaemonWatch(sandbox=started, metrics=WatchMetrics(), now=clock)
    for clock.time in (0.0, 0.5, 1.0, 1.5, 3.0, 3.4):
        watch.check()
    assert len(asked) == 2  # the second answer confirms the first
    clock.time = 3.5
    watch.check()
    assert len(asked) == 3

    os.kill(first, signal.SIGKILL)
    until(lambda: started.supervisor.status("one").pid not in {first, None})
    asked.clear()
    watch.check()
    assert len(asked) == 1


def test_a_supervisor_that_runs_is_asked_every_three_seconds_and_its_death_is_seen_at_once(
    started: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("observatory.scheduling.watcher.LOOK_SECONDS", 3600)
    pid, watch = started.supervisor_pid(), SupervisorWatch(sandbox=started, metrics=WatchMetrics())
    assert pid
    asked = counted(monkeypatch, Supervisor, "answers")
    for _ in range(5):
        watch.check()
    assert len(asked) == 2

    halt(pid)
    watch.check()
    until(started.supervisor.answers)
    kill_supervisor(started)
    watch.check()
    assert started.supervisor_pid() not in {pid, None}
    assert watch.metrics.restarts == 1


def test_a_stopped_supervisor_is_continued_and_a_dead_one_replaced(started: Sandbox) -> None:
    started.supervisor.apply(Program(name="sleeper", command=("sleep", "1000")))
    pid, daemon = started.supervisor_pid(), started.supervisor.status("sleeper").pid
    assert pid
    watch = SupervisorWatch(sandbox=started, metrics=WatchMetrics())
    halt(pid)
    watch.check()
    until(started.supervisor.answers)
    assert (started.supervisor_pid(), started.supervisor.status("sleeper").pid) == (pid, daemon)

    kill_supervisor(started)
    watch.check()
    assert started.supervisor_pid() not in {pid, None}
    assert watch.metrics.restarts == 1
    assert watch.metrics.death > 0


def test_the_supervisor_of_a_stopped_stack_stays_away(started: Sandbox) -> None:
    wanted_file(started).unlink()
    kill_supervisor(started)
    watch = SupervisorWatch(sandbox=started, metrics=WatchMetrics())
    watch.check()
    assert started.supervisor_pid() is None


def test_counters_continue_after_a_restart_of_the_watcher(started: Sandbox) -> None:
    metrics = WatchMetrics(restarts=2, death=1795874510.25, starts={"etcd": 3})
    started.write_file("/srv/data/textfile/watcher.prom", metrics.text())
    found = WatchMetrics.read(started)
    assert (found.restarts, found.death, found.starts) == (2, 1795874510.25, {"etcd": 3})


def test_the_reserve_is_released_on_a_full_disk_and_filled_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "40m") as disk:
        rooms: list[int] = []
        home, state = (Reserve(directory=disk / name, size=2**20) for name in ("home", "state"))
        for each in (home, state):
            each.directory.mkdir()
        metrics = WatchMetrics()
        watch = DiskWatch(reserves={"home": home, "state": state}, metrics=metrics, room=lambda: rooms.append(1))
        watch.check()
        assert home.held()
        assert state.held()
        rooms.clear()
        fill(disk / "filler")
        watch.check()
        assert (home.held(), bool(state.held()), rooms) == (0, True, [])
        assert metrics.reserves["home"] == 0
        (disk / "filler").unlink()
        watch.check()
        assert home.held()
        assert rooms == [1]


PROCESS = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path
    from observatory.files import locks
    home = Path(sys.argv[1])
    if (home / "broken").exists():
        raise SystemExit("the settings are wrong")
    with locks.claim(home / "lock/dummy.lock"):
        (home / "data/textfile").mkdir(exist_ok=True)
        while not (home / "quiet").exists():
            (home / "data/textfile/dummy.prom").write_text("")
            time.sleep(0.1)
        (home / "quiet").rename(home / "is-quiet")
        time.sleep(1000)
""")


@pytest.fixture
def process(tmp_path: Path, rootfs: Path) -> Iterator[HostProcess]:
    """A host process that beats, of a stack that is up."""
    sandbox = Sandbox(tmp_path / "home", rootfs)
    sandbox.make_home()
    wanted_file(sandbox).touch()
    (tmp_path / "dummy_process.py").write_text(PROCESS)
    yield HostProcess(name="dummy", arguments=("dummy_process", str(sandbox.home)), sandbox=sandbox, root=tmp_path)
    stop_holder(sandbox.home / "lock/dummy.lock")
    wait_for_ended()


def test_a_killed_host_process_is_started_again(process: HostProcess) -> None:
    assert process.keep()
    pid = process.pid()
    assert pid
    assert not process.keep()
    os.kill(pid, signal.SIGKILL)
    until(lambda: process.pid() is None)
    assert process.keep()
    assert process.pid() not in {pid, None}


def test_a_stopped_host_process_is_continued_and_one_that_hangs_is_replaced(
    process: HostProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = process.start()
    halt(pid)
    assert not process.keep()
    file = process.sandbox.home / "data/textfile/dummy.prom"
    os.utime(file, (0, 0))
    until(lambda: file.stat().st_mtime > 0)
    monkeypatch.setattr(sys.modules[HostProcess.__module__], "SILENCE_SECONDS", 0)
    assert process.keep()
    assert process.pid() not in {pid, None}


@pytest.fixture
def silent(process: HostProcess) -> tuple[HostProcess, int]:
    """A host process that runs and beats no more, and its id."""
    pid = process.start()
    (process.sandbox.home / "quiet").touch()
    file = process.sandbox.home / "data/textfile/dummy.prom"
    until((process.sandbox.home / "is-quiet").exists)
    os.utime(file, (time.time() - 5, time.time() - 5))
    return process, pid


def test_a_suspended_machine_and_a_changed_time_replace_no_host_process(
    silent: tuple[HostProcess, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, pid = silent
    clock = own_clock(monkeypatch, host_process)
    assert not process.keep()
    clock[0] += 3600  # where the machine was stopped as a whole, this one and its clock went on
    file = process.sandbox.home / "data/textfile/dummy.prom"
    os.utime(file, (0, file.stat().st_mtime - 86_400))
    assert not process.keep()
    clock[0] += 3600
    monkeypatch.setattr(vars(host_process)["time"], "time", lambda: time.time() + 86_400)
    assert not process.keep()
    assert process.pid() == pid


def test_a_host_process_without_a_heartbeat_is_replaced_after_a_minute(
    silent: tuple[HostProcess, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, pid = silent
    clock = own_clock(monkeypatch, host_process)
    for _ in range(20):
        assert not process.keep()
        clock[0] += LOOK_SECONDS
    assert process.keep()
    assert process.pid() not in {pid, None}


def test_a_host_process_that_runs_is_looked_for_every_three_seconds_and_its_end_is_seen_at_once(
    process: HostProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("observatory.scheduling.watcher.LOOK_SECONDS", 3600)
    looks, watch = counted(monkeypatch, HostProcess, "keep"), HostProcessWatch(process=process)
    for _ in range(5):
        watch.check()
    assert len(looks) == 2
    pid = process.pid()
    assert pid
    halt(pid)
    watch.check()
    until(lambda: not is_stopped(pid))

    os.kill(pid, signal.SIGKILL)
    until(lambda: process.pid() is None)
    watch.check()
    assert process.pid() not in {pid, None}


def test_a_host_process_of_a_stopped_stack_stays_away(process: HostProcess) -> None:
    wanted_file(process.sandbox).unlink()
    assert not process.keep()
    assert process.pid() is None


def test_no_host_process_is_started_while_a_command_changes_them(process: HostProcess) -> None:
    with changing(process.sandbox):
        assert not process.keep()
    assert process.pid() is None


def test_a_host_process_that_ends_at_its_start_is_explained(process: HostProcess) -> None:
    (process.sandbox.home / "broken").touch()
    with pytest.raises(DaemonFailed, match=r"(?s)the dummy ended, exit status 1\..*the settings are wrong"):
        process.keep()
    assert locks.holder(process.sandbox.home / "lock/dummy.lock") is None


def replaced(process: HostProcess, pid: int) -> bool:
    return process.pid() not in {pid, None} and process.ready()


def beat_after(sandbox: Sandbox, name: str, first: datetime | None) -> bool:
    last = last_beat(sandbox, name)
    return first is not None and last is not None and last > first


def test_guard_and_watcher_keep_each_other_running_until_the_stack_is_stopped(
    started: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    guard, watcher = (make(started, root=tmp_path, stack="local") for make in (guard_process, watcher_process))
    try:
        with changing(started):
            guard.start()
        wait_until(watcher.ready, "the watcher")  # which nothing else starts: there is no scheduler
        for beating in (watcher, guard):
            first = last_beat(started, beating.name)
            wait_until(partial(beat_after, started, beating.name, first), f"another heartbeat of the {beating.name}")
        for killed in (watcher, guard):
            pid = killed.pid()
            assert pid
            os.kill(pid, signal.SIGKILL)
            wait_until(partial(replaced, killed, pid), f"another {killed.name}")
        wanted_file(started).unlink()
        wait_until(lambda: guard.pid() is None and watcher.pid() is None, "their end")
    finally:
        stop_scheduler(started)
        wait_for_ended()
