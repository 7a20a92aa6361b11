"""A stopped Prometheus and a killed Alertmanager are noticed outside of both, by a real pair of them."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from monitoring.alertmanager import LOCAL_HEARTBEAT
from observatory.nodes import Paths
from observatory.nodes.programs.alert_receiver import SILENCE_SECONDS
from observatory.nodes.prometheus import RESEND, prometheus
from observatory.notifications import Secret, Webhook
from observatory.runtime import Sandbox
from observatory.scheduling import heartbeat
from observatory.scheduling.heartbeat import HeartbeatWatch, heartbeat_age
from tests.monitoring.conftest import Pager
from tests.notifications.receiver import Receiver, receiver
from tests.support.sandboxes import start_unit
from tests.support.waiting import until

pytestmark = pytest.mark.slow

PROMISED_S = 120.0
PATIENCE_S = 180.0


def watch(sandbox: Sandbox, hook: Receiver, **options: float) -> HeartbeatWatch:
    channels = [Webhook(Secret(plain=hook.url))]
    return HeartbeatWatch(sandbox=sandbox, stack="a", channels=lambda: channels, **options)  # type: ignore[arg-type]


@contextmanager
def watched(sandbox: Sandbox) -> Iterator[Receiver]:
    """Check the heartbeat twice a second, as the watcher does, and yield what receives its notices."""
    ended = threading.Event()
    with receiver() as hook:
        checked = watch(sandbox, hook, started=time.monotonic() - heartbeat.START_SECONDS)

        def run() -> None:
            while not ended.wait(0.5):
                checked.check()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield hook
        finally:
            ended.set()
            thread.join()


def kinds(hook: Receiver) -> list[str]:
    return [notice["kind"] for notice in hook.got]


def test_the_end_of_prometheus_and_of_alertmanager_is_noticed(pager: Pager, monkeypatch: pytest.MonkeyPatch) -> None:
    # Heartbeats come every second or two: no stall of a busy machine is that long a silence.
    monkeypatch.setattr(heartbeat, "SILENCE_SECONDS", 25.0)
    sandbox, supervisor = pager.sandbox, pager.sandbox.supervisor
    file, text = next((path, text) for path, text in pager.unit.files.items() if path.endswith("alertmanager.yaml"))
    pager.configure(text)
    unit = prometheus(pager.settings, Paths(), stack="a", instances={}, scrapes=())
    quick = tuple(word.replace(f"resend-delay={RESEND}", "resend-delay=1s") for word in unit.command)
    start_unit(sandbox, unit.model_copy(update={"command": quick}))
    until(lambda: heartbeat_age(sandbox) is not None, "the first heartbeat", timeout_s=PATIENCE_S)
    with watched(sandbox) as hook:
        pid = supervisor.status("prometheus").pid
        assert pid
        os.kill(pid, signal.SIGSTOP)
        until(lambda: kinds(hook) == ["monitoring-down"], "the notice about Prometheus", timeout_s=PATIENCE_S)
        os.kill(pid, signal.SIGCONT)
        until(lambda: kinds(hook)[1:] == ["monitoring-up"], "the end of it", timeout_s=PATIENCE_S)
        sandbox.write_file(file, "broken: [")  # so that the supervisor cannot start it again
        killed = supervisor.status("alertmanager").pid
        assert killed
        os.kill(killed, signal.SIGKILL)
        until(lambda: kinds(hook)[2:] == ["monitoring-down"], "the notice about Alertmanager", timeout_s=PATIENCE_S)
        assert "alerts are not delivered" in hook.got[2]["title"]


def seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)(s|m)", text)
    assert found
    return float(found[1]) * {"s": 1, "m": 60}[found[2]]


def test_the_intervals_add_up_to_what_is_promised() -> None:
    # Alertmanager resolves an alert four times as long after Prometheus sent it, and beats up to then.
    assert 4 * seconds(RESEND) + SILENCE_SECONDS + 1 <= PROMISED_S
    assert 4 * seconds(LOCAL_HEARTBEAT) < SILENCE_SECONDS


@pytest.fixture
def home(tmp_path: Path, rootfs: Path) -> Sandbox:
    sandbox = Sandbox(tmp_path / "home", rootfs)
    sandbox.make_directory("/srv/lock")
    sandbox.make_directory("/srv/data/alerts")
    return sandbox


def test_a_notice_is_sent_once_also_by_the_next_watcher(home: Sandbox) -> None:
    clock = [1000.0]
    file = home.host_path(heartbeat.FILE)

    def beat() -> None:
        file.touch()
        os.utime(file, (clock[0], clock[0]))

    with receiver() as hook:
        clocks = {"now": lambda: clock[0], "steady": lambda: clock[0]}
        make = partial(watch, home, hook, started=clock[0], **clocks)  # type: ignore[arg-type]
        first = make()
        first.check()  # no heartbeat yet, and none is due
        clock[0] += heartbeat.START_SECONDS - 1
        first.check()
        beat()
        first.check()
        clock[0] += SILENCE_SECONDS
        first.check()
        assert hook.got == []
        clock[0] += 1
        first.check()
        (marker,) = home.home.glob("lock/monitoring-down")
        os.utime(marker, (clock[0], clock[0]))
        for each in (first, make()):
            each.check()
        assert kinds(hook) == ["monitoring-down"]
        clock[0] += heartbeat.REPEAT_SECONDS + 1
        make().check()
        assert kinds(hook) == ["monitoring-down"] * 2
        beat()
        make().check()
        make().check()
        assert kinds(hook) == ["monitoring-down"] * 2 + ["monitoring-up"]


@pytest.mark.parametrize("jump", [36_000.0, -36_000.0], ids=["forward or suspended", "back"])
def test_a_change_of_the_time_is_no_silence_and_hides_none(home: Sandbox, jump: float) -> None:
    now, steady = [100_000.0], [1000.0]
    file = home.host_path(heartbeat.FILE)
    file.touch()
    os.utime(file, (now[0], now[0]))
    with receiver() as hook:
        watching = watch(home, hook, started=0.0, now=lambda: now[0], steady=lambda: steady[0])  # type: ignore[arg-type]
        watching.check()
        now[0] += jump
        steady[0] += SILENCE_SECONDS
        watching.check()
        assert hook.got == []
        steady[0] += 1
        watching.check()
    assert kinds(hook) == ["monitoring-down"]
    assert f"no heartbeat for {SILENCE_SECONDS + 1:.0f} s" in hook.got[0]["text"]


def test_a_disk_that_takes_no_file_hides_no_notice(home: Sandbox) -> None:
    home.host_path("/srv/lock").rmdir()
    home.host_path("/srv/lock").touch()  # as a full disk, or one that became read-only: no file can be made there
    steady = [1000.0]
    with receiver() as hook:
        watching = watch(home, hook, started=0.0, steady=lambda: steady[0])  # type: ignore[arg-type]
        for _ in range(3):
            watching.check()
        assert kinds(hook) == ["monitoring-down"]
        steady[0] += heartbeat.REPEAT_SECONDS + 1
        watching.check()
        assert kinds(hook) == ["monitoring-down"] * 2
        home.host_path(heartbeat.FILE).touch()
        for _ in range(3):
            watching.check()
    assert kinds(hook) == ["monitoring-down"] * 2 + ["monitoring-up"]


@pytest.mark.parametrize("jump", [36_000.0, -36_000.0], ids=["forward or suspended", "back"])
def test_a_change_of_the_time_neither_repeats_a_notice_nor_ends_its_repetition(home: Sandbox, jump: float) -> None:
    now, steady = [time.time()], [1000.0]
    with receiver() as hook:
        watching = watch(home, hook, started=0.0, now=lambda: now[0], steady=lambda: steady[0])  # type: ignore[arg-type]
        watching.check()
        now[0] += jump
        watching.check()
        assert kinds(hook) == ["monitoring-down"]
        steady[0] += heartbeat.REPEAT_SECONDS + 1
        watching.check()
    assert kinds(hook) == ["monitoring-down"] * 2


def test_monitoring_that_never_starts_is_noticed(home: Sandbox) -> None:
    with receiver() as hook:
        late = watch(home, hook, started=time.monotonic() - heartbeat.START_SECONDS - 1)
        late.check()
    assert kinds(hook) == ["monitoring-down"]
    assert heartbeat_age(home) is None


def test_settings_that_cannot_be_read_leave_the_notice_to_the_next_check(home: Sandbox) -> None:
    def broken() -> list[Webhook]:
        raise OSError("no settings")

    with receiver() as hook:
        late = HeartbeatWatch(sandbox=home, stack="a", channels=broken, started=0)
        with pytest.raises(OSError, match="no settings"):
            late.check()
        watch(home, hook, started=0).check()
    assert kinds(hook) == ["monitoring-down"]
