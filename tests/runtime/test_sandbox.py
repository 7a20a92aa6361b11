"""The sandbox starts once, survives what kills its supervisor, and leaves no process behind."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from observatory.runtime import Probe, Program, Sandbox, SandboxError
from observatory.runtime import sandbox as module
from observatory.waiting import wait_until
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S, until

pytestmark = pytest.mark.slow

SLEEPER = Program(name="sleeper", command=("sleep", "1000"))


def pids(sandbox: Sandbox, command: str) -> list[int]:
    return [process.pid for process in sandbox.processes() if process.command == command]


def eventually(sandbox: Sandbox, command: str) -> list[int]:
    """Return the pids of `command`, waiting for the first: until its `exec` a daemon is a shell."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = pids(sandbox, command)
        return bool(found)

    until(is_there, command)
    return found


def members(sandbox: Sandbox) -> list[int]:
    return sandbox._members(supervised=False)


def kill_supervisor(sandbox: Sandbox) -> None:
    """End supervisord as the kernel's OOM killer would, and wait until it is gone.

    It is not found by its name, which a daemon that was just started has, too, until its `exec`.
    """
    pid = sandbox.supervisor_pid()
    assert pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: _has_ended(pid), "the end of the supervisor")


def _has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_starts_once_and_stops_all(sandbox: Sandbox) -> None:
    assert not sandbox.alive()
    assert sandbox.start()
    assert not sandbox.start()
    sandbox.supervisor.apply(SLEEPER)
    assert len(eventually(sandbox, "sleep")) == 1

    sandbox.stop()
    assert not sandbox.alive()
    assert members(sandbox) == []
    sandbox.stop()


def test_stop_of_a_sandbox_that_never_ran(tmp_path: Path, rootfs: Path) -> None:
    Sandbox(tmp_path / "none", rootfs).stop()
    assert not (tmp_path / "none").exists()


def test_programs_start_with_the_sandbox(started: Sandbox) -> None:
    started.supervisor.apply(SLEEPER)
    started.stop()
    started.start()
    assert not started.supervisor.apply(SLEEPER) or started.supervisor.status("sleeper").running
    assert len(eventually(started, "sleep")) == 1


def test_concurrent_starts_make_one_supervisor(tmp_path: Path, rootfs: Path) -> None:
    program = "import sys; from pathlib import Path; from observatory.runtime import Sandbox;"
    program += "print(Sandbox(Path(sys.argv[1]), Path(sys.argv[2])).start())"
    command = [sys.executable, "-c", program, str(tmp_path / "home"), str(rootfs)]
    sandbox = Sandbox(tmp_path / "home", rootfs)
    try:
        with ThreadPoolExecutor(4) as pool:
            runs = pool.map(lambda _: subprocess.run(command, capture_output=True, text=True, check=True), range(4))
            assert sorted(run.stdout.strip() for run in runs) == ["False", "False", "False", "True"]
        assert len(pids(sandbox, "supervisord")) == 1
    finally:
        sandbox.stop()


def test_orphans_of_a_killed_supervisor_are_ended(started: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    (stopping, _), (killing, _) = module.ESCALATION
    monkeypatch.setattr(module, "ESCALATION", ((stopping, 0.5), (killing, PATIENCE_S)))
    stubborn = Program(
        name="stubborn", command=("sh", "-c", "trap '' INT TERM; while :; do sleep 0.1; done"), stop_seconds=1
    )
    started.supervisor.apply(stubborn)
    orphan = started.supervisor.status("stubborn").pid
    kill_supervisor(started)
    assert not started.alive()
    assert orphan in members(started)

    assert started.start()
    assert orphan not in members(started)
    started.supervisor.apply(stubborn)
    assert started.supervisor.status("stubborn").running


def test_stop_ends_what_escaped_the_supervisor(started: Sandbox) -> None:
    escaping = "setsid sh -c 'touch /srv/run/escaped; exec sleep 1000' >/dev/null 2>&1 </dev/null &"
    started.run(["sh", "-c", f"{escaping} while [ ! -e /srv/run/escaped ]; do sleep 0.02; done"])
    until(lambda: len(members(started)) == 2, "the command to leave only what has escaped")
    started.stop()
    assert members(started) == []


def test_start_leaves_one_shot_commands_alone(sandbox: Sandbox) -> None:
    sandbox.make_directory("/srv/data")
    os.mkfifo(sandbox.host_path("/srv/data/fifo"))
    sandbox.adopt("/srv/data/fifo")
    with ThreadPoolExecutor(1) as pool:
        command = pool.submit(sandbox.run, ["sh", "-c", "echo begun >/srv/data/begun; cat /srv/data/fifo"])
        until(lambda: sandbox.host_path("/srv/data/begun").exists() or command.done(), "the command to run")
        sandbox.start()
        assert not command.done()
        sandbox.host_path("/srv/data/fifo").write_text("answer")
        assert command.result(timeout=PATIENCE_S).stdout == "answer"


@contextmanager
def postgres(sandbox: Sandbox) -> Iterator[tuple[Program, Probe]]:
    """A program that runs a new PostgreSQL cluster."""
    port = free_port()
    sandbox.run(["initdb", "--pgdata=/srv/data/postgres", "--locale=C.UTF-8", "--no-sync"])
    command = ("postgres", "-D", "/srv/data/postgres", "-p", str(port), "-k", "/srv/run", "-c", "fsync=off")
    libraries = ("-c", "shared_preload_libraries=timescaledb,pg_cron,pgaudit,pg_stat_statements")
    yield Program(name="postgres", command=(*command, *libraries), stop_signal="INT"), Probe(tcp=("127.0.0.1", port))


def test_never_two_postmasters(started: Sandbox) -> None:
    with postgres(started) as (program, probe):
        started.supervisor.apply(program)
        started.supervisor.wait_ready("postgres", probe, timeout=PATIENCE_S)
        kill_supervisor(started)
        started.start()
        started.supervisor.wait_ready("postgres", probe, timeout=PATIENCE_S)
        postmaster = int((started.home / "data/postgres/postmaster.pid").read_text().split()[0])
        assert started.supervisor.status("postgres").pid == postmaster


def test_pid_files_of_before_a_reboot_do_not_block(started: Sandbox) -> None:
    with postgres(started) as (program, probe):
        started.supervisor.apply(program)
        started.supervisor.wait_ready("postgres", probe, timeout=PATIENCE_S)
        pid_file = started.home / "data/postgres/postmaster.pid"
        content = pid_file.read_text()
        module._signal(members(started), (signal.SIGKILL,))  # the power fails
        assert started._wait_gone(PATIENCE_S) == []
        pid_file.write_text("\n".join([str(os.getpid()), *content.splitlines()[1:]]))  # the pid is another's by now
        (started.home / "run/supervisord.pid").write_text(f"{os.getpid()}\n")
        started.adopt("/srv/data/postgres/postmaster.pid")

        started.start()
        started.supervisor.wait_ready("postgres", probe, timeout=PATIENCE_S)


def test_home_may_be_deeper_than_a_socket_address(tmp_path: Path, rootfs: Path) -> None:
    sandbox = Sandbox(tmp_path / ("x" * 100) / "home", rootfs)
    try:
        sandbox.start()
        assert sandbox.supervisor.apply(SLEEPER)
    finally:
        sandbox.stop()


def test_nothing_is_inherited(sandbox: Sandbox) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    sandbox.start()
    os.close(writer)
    sandbox.supervisor.apply(SLEEPER)
    supervisor, (sleeper,) = sandbox.supervisor_pid(), eventually(sandbox, "sleep")
    assert supervisor
    pipe = Path(f"/proc/self/fd/{reader}").readlink()
    open_files = [file for pid in (supervisor, sleeper) for file in _open_files(pid)]
    os.close(reader)
    assert pipe not in open_files
    assert os.getsid(supervisor) != os.getsid(0)


def _open_files(pid: int) -> Iterator[Path]:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile, as the supervisor's connection to its client
            yield link.readlink()


def test_runs_as_an_ordinary_user_on_a_read_only_root(sandbox: Sandbox) -> None:
    assert sandbox.run(["id", "-un"]).stdout == "observatory\n"
    assert sandbox.run(["sh", "-c", "touch /usr/x || touch /etc/x"], check=False).returncode != 0
    assert sandbox.run(["sh", "-c", "grep ^CapEff /proc/self/status"]).stdout.split()[1] == "0" * 16
    assert (
        sandbox.run(["sh", "-c", "umask 077; touch /srv/data/mine; stat -c %U /srv/data/mine"]).stdout
        == "observatory\n"
    )


def test_run_passes_environment_and_input(sandbox: Sandbox) -> None:
    result = sandbox.run(["sh", "-c", 'printf %s "$SECRET"; cat'], env={"SECRET": "a'b\"c\nd"}, stdin="input")
    assert result.stdout == "a'b\"c\ndinput"
    assert "a'b" not in " ".join(result.args)


def test_run_does_not_leak_the_callers_environment(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    assert "hidden" not in sandbox.run(["env"]).stdout


def test_run_reports_failure_and_timeout(sandbox: Sandbox) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failure:
        sandbox.run(["sh", "-c", "echo why >&2; exit 3"])
    assert (failure.value.returncode, failure.value.stderr) == (3, "why\n")
    with pytest.raises(subprocess.TimeoutExpired):
        sandbox.run(["sleep", "1000"], timeout=0.3)
    assert sandbox._wait_gone(PATIENCE_S, supervised=False) == []


def test_a_command_ends_with_its_killed_caller(sandbox: Sandbox) -> None:
    """Also as root, whose sandbox runs it as another user."""
    code = """
        import sys
        from pathlib import Path
        from observatory.runtime import Sandbox
        Sandbox(Path(sys.argv[1]), Path(sys.argv[2])).run(["sh", "-c", "sleep 1000; true"])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(sandbox.home), str(sandbox.rootfs)]
    sandbox.make_home()
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as caller:
        assert wait_until(lambda: _names(members(sandbox)).count("sleep") == 1, 60)
        caller.kill()
    assert wait_until(lambda: members(sandbox) == [], 60)


def test_a_command_that_a_signal_ends_has_its_exit_status(sandbox: Sandbox) -> None:
    assert sandbox.run(["sh", "-c", "kill -TERM $$"], check=False).returncode == 128 + signal.SIGTERM
    assert sandbox.run(["no-such-program"], check=False).stderr == "no-such-program: No such file or directory\n"


def _names(pids: list[int]) -> list[str]:
    names = []
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            names.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return names


def test_files_belong_to_the_daemons(sandbox: Sandbox) -> None:
    assert sandbox.write_file("/srv/etc/deep/secret", "s")
    assert not sandbox.write_file("/srv/etc/deep/secret", "s")
    sandbox.make_directory("/srv/data/deep")
    listing = sandbox.run(["stat", "-c", "%U %a", "/srv/etc/deep/secret", "/srv/data/deep", "/srv/etc/deep"]).stdout
    above = "root 750" if os.geteuid() == 0 else "observatory 700"
    assert listing == f"observatory 600\nobservatory 700\n{above}\n"
    with pytest.raises(ValueError, match="/etc"):
        sandbox.write_file("/etc/passwd", "")


def test_processes_have_program_and_memory(started: Sandbox) -> None:
    started.supervisor.apply(Program(name="tree", command=("sh", "-c", "setsid sleep 1000; :")))
    assert started.supervisor.status("tree").running
    eventually(started, "sleep")
    (child,) = (process for process in started.processes() if process.command == "sleep")
    assert child.program == "tree"
    assert 0 < child.pss < 50_000_000


def test_a_supervisor_that_cannot_start_reports_the_reason(sandbox: Sandbox) -> None:
    sandbox.write_file("/srv/etc/supervisor.d/broken.conf", "[program:broken]\n")
    with pytest.raises(SandboxError, match="broken"):
        sandbox.start()
    sandbox.host_path("/srv/etc/supervisor.d/broken.conf").unlink()


def test_a_stale_socket_does_not_block(sandbox: Sandbox) -> None:
    sandbox.make_directory("/srv/run")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sandbox.host_path("/srv/run/supervisor.sock")))
    assert sandbox.start()


def test_neither_root_nor_user_namespaces(tmp_path: Path, rootfs: Path) -> None:
    """In a namespace whose root maps one user only, where the kernel refuses further namespaces."""
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from observatory.runtime import Sandbox, SandboxUnavailable
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        try:
            Sandbox(Path(sys.argv[1]), Path(sys.argv[2])).start()
        except SandboxUnavailable as error:
            print(error)
    """)
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        sys.executable,
        "-c",
        program,
        str(tmp_path / "home"),
        str(rootfs),
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "user namespaces are refused" in output
    assert "max_user_namespaces" in output


def test_daemons_whose_root_filesystem_was_removed_are_found_and_replaced(rootfs: Path, tmp_path: Path) -> None:
    """As `rm -rf ~/.cache/llm-observatory` while a stack runs: the kernel detaches /srv from the daemons."""
    copy = tmp_path / "rootfs"
    subprocess.run(["cp", "-a", "--reflink=auto", str(rootfs.resolve()), str(copy)], check=True)
    sandbox = Sandbox(tmp_path / "home", copy)
    try:
        sandbox.start()
        sandbox.supervisor.apply(SLEEPER)
        sandbox.supervisor.apply(Program(name="elsewhere", command=("sh", "-c", "cd /tmp; exec tail -f /dev/null")))
        (old,), (elsewhere,) = eventually(sandbox, "sleep"), eventually(sandbox, "tail")
        copy.rename(tmp_path / "old")
        copy.symlink_to(rootfs.resolve())
        shutil.rmtree(tmp_path / "old")
        assert {old, elsewhere} <= set(sandbox.members())
        assert not sandbox.alive()

        assert sandbox.start()
        assert not Path(f"/proc/{old}").exists()
        assert not Path(f"/proc/{elsewhere}").exists()
        assert len(eventually(sandbox, "sleep")) == 1
        assert not sandbox.start()
    finally:
        sandbox.stop()
    assert members(sandbox) == []
