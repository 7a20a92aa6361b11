"""Nothing that runs in a sandbox can reach the host: each kind of sandbox tries what `escape.py` lists."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from observatory.platforms.rehearsal import installation
from observatory.runtime import Program, Sandbox, bubblewrap, home_owners
from observatory.waiting import wait_until
from tests.support.postgres import PostgresServer
from tests.support.sandboxes import sandboxed

ESCAPE = Path(__file__).with_name("escape.py").read_text(encoding="utf-8")
AS_ROOT = os.geteuid() == 0
# An ordinary user's daemons are that user's processes, in another user namespace: docs/security.md.
ALLOWED = set() if AS_ROOT else {"signal"}
# Building the root filesystem writes to it, as a root without capabilities and without another process in sight.
OF_THE_BUILD = [
    *("write to the root filesystem", "write to the name tables", "write beside its directory"),
    *("become root", "gain a capability", "read a key of the operator's session"),
]

Attempt = Callable[[list[str]], str]


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[list[str]]:
    """The arguments of `escape.py`: a process of the user that runs the suite, a private file and a key of its."""
    private = tmp_path / "operator/.ssh/id_ed25519"
    private.parent.mkdir(parents=True, mode=0o700)
    private.write_text("key")
    private.chmod(0o600)
    with subprocess.Popen(["sleep", "1000"], env={"SECRET": "s"}, cwd=private.parent) as process:
        yield [str(process.pid), str(private), str(session_key())]
        process.kill()


def session_key() -> int:
    """Return a new key in a new session keyring; -1 where this machine allows none."""
    keyctl, add_key = {"x86_64": (250, 248), "aarch64": (219, 217)}.get(platform.machine(), (-1, -1))
    libc = ctypes.CDLL(None)
    libc.syscall(keyctl, 1, None)
    return int(libc.syscall(add_key, b"user", b"observatory-test", b"secret", 6, -3))


def place_setuid(data: Path, rootfs: Path) -> None:
    """Put a program with the setuid bit of the suite's user where the sandbox has it as /srv/data/setuid-id."""
    shutil.copy(rootfs / "usr/bin/id", data / "setuid-id")
    (data / "setuid-id").chmod(0o4755)


def as_command(sandbox: Sandbox, _tmp_path: Path) -> Attempt:
    """A single command in the stack's sandbox, as pgBackRest, `psql` and the `--check` of a release's trial run."""
    return lambda argv: sandbox.run(argv).stdout


def as_daemon(sandbox: Sandbox, _tmp_path: Path) -> Attempt:
    """A daemon of the stack, as PostgreSQL and the instance of a release's trial run."""

    def attempt(argv: list[str]) -> str:
        sandbox.start()
        sandbox.supervisor.apply(Program(name="escape", command=tuple(argv), restart=False, start_seconds=0))
        assert wait_until(lambda: sandbox.supervisor.status("escape").state == "EXITED", 60)
        return "\n".join(sandbox.supervisor.log_tail("escape", 1))

    return attempt


def as_rehearsal(sandbox: Sandbox, tmp_path: Path) -> Attempt:
    """The throwaway server on which migrations are rehearsed."""
    (tmp_path / "rehearsal/data").mkdir(parents=True)
    place_setuid(tmp_path / "rehearsal/data", sandbox.rootfs)
    home_owners.adopt(tmp_path / "rehearsal")
    return lambda argv: _output(installation(sandbox.rootfs).wrap(argv, tmp_path / "rehearsal"))


def as_server_of_the_suite(sandbox: Sandbox, tmp_path: Path) -> Attempt:
    """The PostgreSQL of this test suite."""
    (tmp_path / "server/data").mkdir(parents=True)
    place_setuid(tmp_path / "server/data", sandbox.rootfs)
    home_owners.adopt(tmp_path / "server")
    server = PostgresServer(rootfs=sandbox.rootfs, directory=tmp_path / "server", port=0)
    return lambda argv: _output(server.sandboxed(argv))


def as_program_of_the_suite(sandbox: Sandbox, tmp_path: Path) -> Attempt:
    """A single program of this test suite, such as pgBouncer."""
    (tmp_path / "program/data").mkdir(parents=True)
    return lambda argv: _output(sandboxed(sandbox.rootfs, tmp_path / "program", argv, read_only=False))


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


KINDS = [as_command, as_daemon, as_rehearsal, as_server_of_the_suite, as_program_of_the_suite]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sandbox_cannot_be_left(
    kind: Callable[[Sandbox, Path], Attempt], sandbox: Sandbox, tmp_path: Path, victim: list[str]
) -> None:
    sandbox.make_directory("/srv/data")
    place_setuid(sandbox.home / "data", sandbox.rootfs)
    output = kind(sandbox, tmp_path)(["/usr/bin/python3", "-I", "-c", ESCAPE, *victim])
    assert set(json.loads(output)) == ALLOWED


def test_a_step_of_the_build_cannot_leave_the_root_filesystem(rootfs: Path, victim: list[str]) -> None:
    argv = ["/usr/bin/python3", "-I", "-B", "-c", ESCAPE, *victim, *OF_THE_BUILD]
    assert json.loads(_output(bubblewrap.prepare_command(rootfs, argv))) == []


@pytest.mark.skipif(not AS_ROOT, reason="needs root, whose daemons have a user of their own")
def test_roots_daemons_are_no_user_of_the_machine(started: Sandbox) -> None:
    (supervisor,) = started.processes()
    user = int(Path(f"/proc/{supervisor.pid}").stat().st_uid)
    assert user == int(started.run(["id", "-u"]).stdout) != 0
    with pytest.raises(KeyError):
        pwd.getpwuid(user)
    assert started.run(["id", "-un"]).stdout == "observatory\n"
    other = Sandbox(started.home.parent / "other", started.rootfs)
    assert int(other.run(["id", "-u"]).stdout) not in {0, user}
