"""Restores that are killed at every phase leave nothing behind, and one at a time changes the live database."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from observatory.backups.restore_lock import RestoreRunningError, restore_lock
from observatory.backups.scratch import PARENT, ScratchDirectory, remove_abandoned, scratch_directories
from observatory.backups.tool import BackupType
from observatory.errors import REFUSED
from observatory.waiting import wait_until
from tests.backups.conftest import ArchivingServer

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120

pytestmark = pytest.mark.slow

# Restores, and stops for ever where the phase begins, after it has written a line.
RESTORING = """
import contextlib, sys, time
from pathlib import Path
from observatory.backups import restored, scratch
from observatory.backups.cover import find_cover
from observatory.backups.target import RecoveryTarget
from observatory.runtime import Sandbox

home, rootfs, phase = sys.argv[1:]
sandbox = Sandbox(Path(home), Path(rootfs))

def reached(name):
    if name == phase:
        print(name, flush=True)
        time.sleep(3600)

def see(directory, process):  # a sandbox that is not complete yet does not end with this process
    while not directory.processes() and process.poll() is None:
        time.sleep(0.01)

class Noting(restored.RestoredInstance):
    def _launch(self, *arguments, **options):
        super()._launch(*arguments, **options)
        see(self.directory, self._process)
        reached("recovery")

@contextlib.contextmanager
def noting(*arguments, **options):
    with group(*arguments, **options) as process:
        see(directory, process)
        reached("copy")
        yield process

group, restored.process_group, restored.RestoredInstance = restored.process_group, noting, Noting
remove = Sandbox.remove_file

def removing(self, path):
    if Path(path).parent.name == "restore":  # the scratch directory
        remove(self, f"{path}/postgres/base")
        reached("removal")
    remove(self, path)

Sandbox.remove_file = removing
cover = find_cover(sandbox, RecoveryTarget.latest())
with scratch.scratch_directory(sandbox, "test") as directory:
    reached("start")
    with restored.restored_instance(cover, directory=directory, detached=phase == "detached") as instance:
        reached("detached")
        reached("pause")
        instance.promote()
        reached("promotion")
"""


@pytest.fixture(scope="module")
def backed_up(server: ArchivingServer) -> ArchivingServer:
    """A server with a full backup."""
    server.tool.prepare()
    server.tool.backup(BackupType.FULL, repository=1)
    server.sql("CREATE TABLE live (n int); INSERT INTO live VALUES (1)")
    return server


@pytest.fixture
def restoring(backed_up: ArchivingServer, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A process that restores and has reached the phase."""
    sandbox = backed_up.sandbox
    command = [sys.executable, "-c", RESTORING, str(sandbox.home), str(sandbox.rootfs), request.param]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == request.param
            yield process
        finally:
            process.kill()


PHASES = ["start", "copy", "recovery", "pause", "promotion", "removal", "detached"]


@pytest.mark.parametrize("restoring", PHASES, indirect=True)
def test_a_restore_that_is_killed_leaves_nothing_behind(
    backed_up: ArchivingServer, restoring: subprocess.Popen[str], request: pytest.FixtureRequest
) -> None:
    sandbox = backed_up.sandbox
    [directory] = scratch_directories(sandbox)
    assert remove_abandoned(sandbox) == []  # another command does not remove what is in use
    assert directory.host.exists()
    os.kill(restoring.pid, signal.SIGKILL)
    restoring.wait()
    if "detached" not in request.node.name:
        assert wait_until(lambda: not directory.processes(), PATIENCE_S)
    assert remove_abandoned(sandbox) == [directory.name]
    assert directory.processes() == []
    assert list(sandbox.host_path(PARENT).iterdir()) == []
    assert list((sandbox.home / "lock").glob("restored-*")) == []
    assert backed_up.sql("SELECT n FROM live") == "1"


def test_a_kept_directory_stays_as_long_as_its_processes(backed_up: ArchivingServer) -> None:
    sandbox = backed_up.sandbox
    directory = ScratchDirectory(sandbox, "test-kept")
    sandbox.make_directory(directory.inside)
    directory.keep()
    with ExitStack() as ended:
        ended.callback(directory.remove)
        process = subprocess.Popen(
            directory.sandboxed(["/bin/sleep", "3600"], attached=False),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        assert wait_until(lambda: bool(directory.processes()), PATIENCE_S)
        assert remove_abandoned(sandbox) == []
        directory.end_processes()
        process.wait()
        assert remove_abandoned(sandbox) == [directory.name]


def test_stopping_the_stack_ends_restored_servers(backed_up: ArchivingServer) -> None:
    directory = ScratchDirectory(backed_up.sandbox, "test-stopped")
    backed_up.sandbox.make_directory(directory.inside)
    command = directory.sandboxed(["/bin/sleep", "3600"], attached=False)
    with subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL) as process:
        assert wait_until(lambda: bool(directory.processes()), PATIENCE_S)
        backed_up.sandbox.stop()
        process.wait(PATIENCE_S)
    assert remove_abandoned(backed_up.sandbox) == [directory.name]


def test_a_second_restore_is_refused_with_the_first_one_named(backed_up: ArchivingServer) -> None:
    with (
        restore_lock(backed_up.sandbox, "rollback --method database"),
        pytest.raises(RestoreRunningError, match=f"rollback --method database, process {os.getpid()}") as caught,
        restore_lock(backed_up.sandbox, "another"),
    ):
        pass
    assert caught.value.exit_code == REFUSED
    with restore_lock(backed_up.sandbox, "another"):
        pass
