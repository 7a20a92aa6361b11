"""The files of root's sandbox belong to an unassigned user, who cannot have root read or write elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from observatory.database import throwaway_server
from observatory.files.ownership import Owner
from observatory.platforms.rehearsal import installation
from observatory.runtime import Program, Sandbox, SandboxError, sandbox_user
from observatory.scheduling.host_process import log_file
from observatory.scheduling.records import RecordStore

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose daemons have a user of their own")

SLEEPER = Program(name="sleeper", command=("sleep", "1000"))
SECRET = "root's own"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory of root's with a private file, which no test may change."""
    directory = tmp_path / "outside"
    directory.mkdir(mode=0o700)
    (directory / "secret.log").write_text(SECRET)
    (directory / "secret.log").chmod(0o600)
    yield directory
    assert [path.name for path in directory.iterdir()] == ["secret.log"]
    assert (directory / "secret.log").read_text() == SECRET
    assert {path.stat().st_uid for path in (directory, directory / "secret.log")} == {0}


def test_files_of_release_0_1_0_change_their_owner_at_the_next_start(
    sandbox: Sandbox, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sandbox_user, "needed", lambda: False)  # as release 0.1.0 made it
        sandbox.start()
        sandbox.supervisor.apply(SLEEPER)
        sandbox.write_file("/srv/data/rows", "rows")
    (sandbox.home / "data/link").symlink_to(outside / "secret.log")
    (sandbox.home / "data/directory").symlink_to(outside)
    (outside.parent / "snapshot").hardlink_to(sandbox.home / "data/rows")
    before = sandbox.supervisor.pid()

    assert sandbox.run(["cat", "/srv/data/rows"]).stdout == "rows"  # commands work before the change
    with pytest.raises(SandboxError, match=r"1 of them are hard links.*\n.*data/rows\nReplace each by a copy"):
        sandbox.start()
    assert sandbox.supervisor.pid() == before

    (outside.parent / "snapshot").unlink()
    assert sandbox.start()
    assert not sandbox.start()
    assert sandbox.supervisor.status("sleeper").running
    assert sandbox.run(["cat", "/srv/data/rows"]).stdout == "rows"
    user = sandbox_user.recorded(sandbox.home)
    assert user is not None
    assert {Path(f"/proc/{pid}").stat().st_uid for pid in sandbox.members()} == {user.uid}
    assert {path.lstat().st_uid for path in (sandbox.home / "data").rglob("*")} == {user.uid}
    assert {path.stat().st_uid for path in (sandbox.home, sandbox.home / "etc", sandbox.home / "lock")} == {0}


@pytest.mark.parametrize(
    "command",
    [
        lambda sandbox: sandbox.open_append("/srv/data/jobs/secret.log").close(),
        lambda sandbox: sandbox.open_read("/srv/data/jobs/secret.log"),
        lambda sandbox: sandbox.remove_file("/srv/data/jobs/secret.log"),
        lambda sandbox: sandbox.write_file("/srv/data/jobs/secret.log", "written"),
        lambda sandbox: sandbox.adopt("/srv/data/jobs/secret.log"),
        lambda sandbox: sandbox.make_directory("/srv/data/jobs/deep"),
    ],
    ids=["append", "read", "remove", "write", "adopt", "make"],
)
def test_a_directory_that_a_daemon_replaced_by_a_link_is_not_used(
    sandbox: Sandbox, outside: Path, command: Callable[[Sandbox], object]
) -> None:
    sandbox.run(["ln", "-s", str(outside), "/srv/data/jobs"])
    with contextlib.suppress(SandboxError, FileNotFoundError):
        command(sandbox)


def test_a_daemon_can_change_no_directory_of_roots(sandbox: Sandbox) -> None:
    sandbox.write_file("/srv/etc/supervisord.conf", "")
    changes = "for name in . etc lock releases etc/supervisor.d user; do touch $name/x && echo $name; done"
    changes += "; mv log data/ && echo moved; rm -f etc/supervisord.conf && echo removed"
    assert sandbox.run(["sh", "-c", changes], check=False).stdout == ""


def test_a_file_that_a_daemon_replaced_is_refused(sandbox: Sandbox, outside: Path) -> None:
    sandbox.run(["sh", "-c", f"ln -s {outside}/secret.log /srv/log/scheduler.log; mkfifo /srv/log/job-backup.log"])
    with pytest.raises(SandboxError, match=r"scheduler\.log cannot be used"):
        log_file(sandbox, "scheduler")
    with pytest.raises(SandboxError, match=r"scheduler\.log cannot be used"):
        sandbox.supervisor.log_tail("scheduler")
    with pytest.raises(SandboxError, match="is no regular file"):
        RecordStore(sandbox=sandbox).open_log("backup")


def test_a_file_with_another_owner_is_written_again(sandbox: Sandbox) -> None:
    sandbox.write_file("/srv/data/textfile/jobs.prom", "same")
    file = sandbox.host_path("/srv/data/textfile/jobs.prom")
    os.chown(file, 0, 0)
    assert sandbox.write_file("/srv/data/textfile/jobs.prom", "same")
    assert file.stat().st_uid != 0


def test_another_users_stack_is_refused(sandbox: Sandbox) -> None:
    for path in (sandbox.home, sandbox.home / "data"):
        path.mkdir()
    for path in (sandbox.home.parent, sandbox.home, sandbox.home / "data"):
        os.chown(path, 4242, 4242)
    with pytest.raises(SandboxError, match=r"belongs to the user 4242.*\nRun the command as that user"):
        sandbox.start()
    os.chown(sandbox.home.parent, 0, 0)


def test_a_user_is_drawn_that_nothing_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "subuid").write_text("alice:70000:2\nnonsense\nbob:70003\n")
    monkeypatch.setattr(sandbox_user, "SUBORDINATE", (tmp_path / "subuid", tmp_path / "absent"))
    monkeypatch.setattr(sandbox_user, "UNASSIGNED", range(69_999, 70_004))
    monkeypatch.setattr(sandbox_user, "_named", lambda number: number == 69_999)
    with subprocess.Popen(["sleep", "1000"], user=70_002, group=0) as process:
        assert sandbox_user.draw() == Owner(uid=70_003, gid=70_003)
        process.kill()


def test_of_two_records_the_first_stays(tmp_path: Path) -> None:
    first = sandbox_user.record(tmp_path, Owner(uid=70_001, gid=70_001))
    assert sandbox_user.record(tmp_path, Owner(uid=70_002, gid=70_002)) == first
    assert sandbox_user.recorded(tmp_path) == first


def test_a_rehearsed_migration_cannot_have_root_signal_another_process(rootfs: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as victim:
        with throwaway_server(installation(rootfs), edition="apache") as conninfo:
            pid_file = Path(conninfo.split("host=")[1].split()[0]).parent / "data/postmaster.pid"
            server = psutil.Process(int(pid_file.read_text().split()[0]))
            pid_file.write_text(f"{victim.pid}\n")
            server.send_signal(signal.SIGQUIT)
        assert victim.poll() is None
        victim.kill()
