"""Programs are applied once, restarted when they change, and their failures are explained."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from observatory.runtime import DaemonFailed, Probe, Program, Sandbox, SandboxError
from observatory.runtime.programs import PROGRAMS
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S

SLEEPER = Program(name="sleeper", command=("sleep", "1000"))
AWKWARD = [
    "",
    "plain",
    "two words",
    "it's",
    'say "hi"',
    "100%",
    "%(ENV_HOME)s",
    "a;b # c",
    "$HOME `id` \\",
    "line\nbreak",
    "Grüße",
]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def begin(sandbox: Sandbox) -> int:
    """Apply SLEEPER and return its pid once it is one: supervisord loses signals sent between fork and exec."""
    sandbox.supervisor.apply(SLEEPER)
    until(lambda: [process for process in sandbox.processes() if process.command == "sleep"])
    pid = sandbox.supervisor.status("sleeper").pid
    assert pid
    return pid


def test_apply_is_idempotent(started: Sandbox) -> None:
    supervisor = started.supervisor
    assert supervisor.apply(SLEEPER)
    before = supervisor.status("sleeper")
    assert not supervisor.apply(SLEEPER)
    assert supervisor.status("sleeper").pid == before.pid
    assert before.running
    assert before.since is not None


@pytest.mark.parametrize(
    "changed",
    [
        Program(name="sleeper", command=("sleep", "2000")),
        Program(name="sleeper", command=("sleep", "1000"), environment={"A": "1"}),
        Program(name="sleeper", command=("sleep", "1000"), stop_signal="INT"),
    ],
    ids=["command", "environment", "stop signal"],
)
def test_a_changed_program_is_restarted(started: Sandbox, changed: Program) -> None:
    before = begin(started)
    assert started.supervisor.apply(changed)
    assert started.supervisor.status("sleeper").pid not in {before, None}


def test_an_interrupted_apply_is_finished(started: Sandbox) -> None:
    begin(started)
    changed = Program(name="sleeper", command=("sleep", "2000"))
    started.write_file(f"{PROGRAMS}/sleeper.sh", changed.script)
    started.write_file(f"{PROGRAMS}/sleeper.conf", changed.configuration)  # and here the caller was killed
    assert started.supervisor.apply(changed)
    assert not started.supervisor.apply(changed)


RELEASED = "while [ ! -e /srv/data/released ]; do sleep 0.1; done; exit"
STUBBORN = Program(
    name="sleeper",
    command=("sh", "-c", f"trap '{RELEASED}' TERM; touch /srv/data/trapped; while :; do sleep 0.1; done"),
    stop_seconds=60,
)


@pytest.mark.parametrize("wanted", [STUBBORN, SLEEPER], ids=["the same", "another"])
def test_a_program_that_a_dead_command_began_to_stop_is_waited_for(started: Sandbox, wanted: Program) -> None:
    supervisor = started.supervisor
    supervisor.apply(STUBBORN)
    until((started.home / "data/trapped").exists)
    supervisor._rpc.call_tolerating(0, "stopProcess", "sleeper", False)
    assert supervisor.status("sleeper").state == "STOPPING"
    release = threading.Timer(1, (started.home / "data/released").touch)
    release.start()
    assert supervisor.apply(wanted)
    assert supervisor.status("sleeper").running
    release.join()


def test_values_arrive_as_they_are(started: Sandbox) -> None:
    environment = {f"VALUE_{number}": value for number, value in enumerate(AWKWARD)}
    script = (
        "import json, os, sys, time; json.dump([dict(os.environ), sys.argv[1:]], open('/srv/data/seen.part', 'w'));"
    )
    script += "os.rename('/srv/data/seen.part', '/srv/data/seen'); time.sleep(1000)"
    command = ("python3", "-c", script, *AWKWARD)
    started.supervisor.apply(Program(name="echo", command=command, environment=environment, directory="/srv/data"))
    seen = started.host_path("/srv/data/seen")
    until(seen.exists)
    variables, arguments = json.loads(seen.read_text())
    assert arguments == AWKWARD
    assert {key: variables.get(key) for key in environment} == environment


def test_secret_files_stay_private(started: Sandbox) -> None:
    started.supervisor.apply(Program(name="writer", command=("sh", "-c", "echo x >/srv/data/made; exec sleep 1000")))
    made = started.host_path("/srv/data/made")
    until(made.exists)
    assert made.stat().st_mode & 0o077 == 0
    files = [*started.host_path(PROGRAMS).iterdir(), started.host_path("/srv/log/writer.log")]
    assert [file.name for file in files if file.stat().st_mode & 0o077] == []


def test_the_error_of_a_daemon_that_dies_at_start_has_its_log(started: Sandbox) -> None:
    command = ("sh", "-c", "echo the configuration is wrong >&2; exit 3")
    started.supervisor.apply(Program(name="dying", command=command, start_retries=0))
    with pytest.raises(DaemonFailed, match=r"(?s)^dying does not stay up: exit status 3\..*the configuration is wrong"):
        started.supervisor.wait_ready("dying", Probe(tcp=("127.0.0.1", 1)), timeout=60)


def test_an_explanation_fits_into_an_error_of_a_dynamic_provider(started: Sandbox) -> None:
    command = ("sh", "-c", "for n in $(seq 20); do printf '%01000d\\n' $n; done; echo the reason; exit 3")
    started.supervisor.apply(Program(name="wordy", command=command, start_retries=0))
    with pytest.raises(DaemonFailed, match=r"the reason$") as failed:
        started.supervisor.wait_ready("wordy", Probe(tcp=("127.0.0.1", 1)), timeout=60)
    assert len(str(failed.value)) < 4000


def test_the_error_of_a_missing_program_names_it(started: Sandbox) -> None:
    started.supervisor.apply(Program(name="absent", command=("/usr/bin/no-such-daemon",), start_retries=0))
    with pytest.raises(DaemonFailed, match=r"(?s)exit status 127.*no-such-daemon"):
        started.supervisor.wait_ready("absent", Probe(tcp=("127.0.0.1", 1)), timeout=60)


def test_a_daemon_that_keeps_dying_is_not_waited_for(started: Sandbox) -> None:
    program = Program(name="looping", command=("sh", "-c", "sleep 0.2; exit 4"), start_seconds=0)
    started.supervisor.apply(program)
    with pytest.raises(DaemonFailed, match="exit status 4"):
        started.supervisor.wait_ready("looping", Probe(tcp=("127.0.0.1", 1)), timeout=200)


def test_a_daemon_that_is_never_ready(started: Sandbox) -> None:
    port = free_port()
    started.supervisor.apply(Program(name="silent", command=("sh", "-c", "echo still loading; exec sleep 1000")))
    until(lambda: started.supervisor.log_tail("silent"))
    with pytest.raises(DaemonFailed, match=rf"(?s)not ready after 0.5 s: 127.0.0.1:{port}: .*refused.*still loading"):
        started.supervisor.wait_ready("silent", Probe(tcp=("127.0.0.1", port)), timeout=0.5)


def test_waiting_for_no_program(started: Sandbox) -> None:
    with pytest.raises(DaemonFailed, match="no such program"):
        started.supervisor.wait_ready("nobody", Probe(tcp=("127.0.0.1", 1)))


def test_a_real_daemon_becomes_ready(started: Sandbox) -> None:
    port = free_port()
    command = ("valkey-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", "/srv/data", "--save", "")
    started.supervisor.apply(Program(name="valkey", command=command))
    started.supervisor.wait_ready("valkey", Probe(tcp=("127.0.0.1", port)), timeout=PATIENCE_S)
    assert started.run(["valkey-cli", "-p", str(port), "ping"]).stdout == "PONG\n"


def test_a_killed_daemon_is_restarted(started: Sandbox) -> None:
    before = begin(started)
    os.kill(before, signal.SIGKILL)
    until(lambda: started.supervisor.status("sleeper").pid not in {before, None})


def test_stop_start_restart_signal(started: Sandbox) -> None:
    supervisor = started.supervisor
    command = ("sh", "-c", "trap 'echo reloaded' HUP; echo begun; while :; do sleep 0.05; done")
    supervisor.apply(Program(name="daemon", command=command))
    until(lambda: "begun" in supervisor.log_tail("daemon"))
    supervisor.signal("daemon", "HUP")
    until(lambda: "reloaded" in supervisor.log_tail("daemon"))
    first = supervisor.status("daemon").pid
    supervisor.restart("daemon")
    assert supervisor.status("daemon").pid not in {first, None}
    supervisor.stop("daemon")
    assert supervisor.status("daemon").state == "STOPPED"
    supervisor.stop("daemon")
    assert supervisor.start("daemon")
    assert not supervisor.start("daemon")


def test_a_removed_program_is_absent(started: Sandbox) -> None:
    pid = begin(started)
    started.supervisor.remove("sleeper")
    started.supervisor.remove("sleeper")
    assert started.supervisor.statuses() == []
    assert pid not in started._members(supervised=True)
    started.stop()
    started.start()
    assert started.supervisor.status("sleeper").state == "ABSENT"


def test_programs_may_be_applied_at_once(started: Sandbox) -> None:
    programs = [Program(name=f"worker-{number % 4}", command=("sleep", "1000")) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(started.supervisor.apply, programs)) == 4
    assert [status.running for status in started.supervisor.statuses()] == [True] * 4


def test_log_tail_is_bounded(sandbox: Sandbox) -> None:
    sandbox.write_file("/srv/log/chatty.log", "".join(f"line {number}\n" for number in range(100_000)))
    assert sandbox.supervisor.log_tail("chatty", 2) == ["line 99998", "line 99999"]
    assert sandbox.supervisor.log_tail("mute") == []


def test_no_supervisor(sandbox: Sandbox) -> None:
    assert sandbox.supervisor.statuses() == []
    sandbox.supervisor.remove("nobody")
    with pytest.raises(SandboxError, match="does not answer"):
        sandbox.supervisor.apply(SLEEPER)


@pytest.mark.parametrize("name", ["", "Upper", "../etc", "a b", "a\n[program:b]"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="program name"):
        Program(name=name, command=("true",))


def test_bad_environment_is_refused() -> None:
    with pytest.raises(ValueError, match="A B"):
        Program(name="x", command=("true",), environment={"A B": "1"})
    with pytest.raises(ValueError, match="NUL"):
        Program(name="x", command=("true", "a\0b"))
