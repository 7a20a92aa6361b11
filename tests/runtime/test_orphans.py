"""Daemons of a dead supervisor end in order, each by its own signal, and start again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from observatory.runtime import Program, RootfsError, Sandbox
from observatory.runtime.orphans import WRITES_SECONDS, main_processes
from observatory.runtime.process_tree import is_stopped
from tests.runtime.test_sandbox import kill_supervisor
from tests.runtime.test_supervisor import until

pytestmark = pytest.mark.slow

SCRIPT = """
record() {{ echo {name} "$1" >>/srv/data/ends; exit; }}
trap 'record INT' INT; trap 'record TERM' TERM; trap 'record USR1' USR1
echo begun; while :; do sleep 0.05; done
"""


def program(name: str, *, priority: int, stop_signal: str) -> Program:
    command = ("sh", "-c", SCRIPT.format(name=name))
    return Program(name=name, command=command, priority=priority, stop_signal=stop_signal, stop_seconds=WRITES_SECONDS)


def started_programs(sandbox: Sandbox) -> None:
    for each in (
        program("store", priority=10, stop_signal="TERM"),
        program("database", priority=20, stop_signal="INT"),
        program("balancer", priority=40, stop_signal="USR1"),
    ):
        sandbox.supervisor.apply(each)
        until(lambda each=each: "begun" in sandbox.supervisor.log_tail(each.name))  # type: ignore[misc]


def test_a_dead_supervisor_is_replaced_and_its_daemons_restart_in_order(started: Sandbox) -> None:
    started_programs(started)
    kill_supervisor(started)
    assert started.supervisor_pid() is None
    assert started.revive()
    assert started.host_path("/srv/data/ends").read_text().split("\n")[:3] == [
        "balancer USR1",
        "database INT",
        "store TERM",
    ]
    until(lambda: [each.state for each in started.supervisor.statuses()] == ["RUNNING"] * 3)
    assert not started.revive()


def test_a_stopped_sandbox_is_not_revived(started: Sandbox) -> None:
    started.stop()
    assert not started.revive()
    assert started.members() == []
    assert started.start()
    kill_supervisor(started)
    assert started.revive()


def test_a_supervisor_is_revived_on_the_root_filesystem_of_its_start(started: Sandbox, tmp_path: Path) -> None:
    kill_supervisor(started)
    other = Sandbox(started.home, tmp_path / "another")
    assert other.revive()
    assert started.alive()


def test_daemons_serve_on_while_the_root_filesystem_is_missing(started: Sandbox, tmp_path: Path) -> None:
    started_programs(started)
    kill_supervisor(started)
    (started.home / "lock/started").write_text(str(tmp_path / "missing"))
    daemons = main_processes(started, started.members())
    with pytest.raises(RootfsError, match="missing"):
        started.revive()
    assert main_processes(started, started.members()) == daemons


def test_what_a_daemon_writes_after_its_supervisor_died_is_in_its_log(started: Sandbox) -> None:
    script = (
        "trap 'for n in 1 2 3; do echo end $n || exit 9; done; exit' TERM; echo begun; while :; do sleep 0.05; done"
    )
    started.supervisor.apply(Program(name="writer", command=("sh", "-c", script), stop_seconds=WRITES_SECONDS))
    until(lambda: "begun" in started.supervisor.log_tail("writer"))
    kill_supervisor(started)
    started.revive()
    assert {"end 1", "end 2", "end 3"} <= set(started.supervisor.log_tail("writer"))


def test_a_daemon_that_overwrites_its_environment_is_found(started: Sandbox) -> None:
    command = ("/usr/bin/valkey-server", "--port", "0", "--unixsocket", "/srv/run/v.sock", "--dir", "/srv/data")
    started.supervisor.apply(Program(name="valkey", command=command))
    until(started.host_path("/srv/run/v.sock").exists)
    pid = started.supervisor.status("valkey").pid
    assert main_processes(started, started.members()) == {pid: "valkey"}


def test_a_supervisor_that_does_not_answer_is_replaced(started: Sandbox) -> None:
    started_programs(started)
    pid = started.supervisor_pid()
    assert pid
    os.kill(pid, signal.SIGSTOP)
    until(lambda: is_stopped(pid))
    assert started.revive()
    assert started.supervisor_pid() not in {pid, None}
