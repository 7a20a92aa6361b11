"""The console's process: started as `up` does it, on loopback, small, and gone with its stack."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from observatory.runtime import Sandbox
from observatory.scheduling import host_process
from observatory.scheduling.host_process import lock_file as process_lock_file
from observatory.scheduling.host_process import process_id, stop_holder, wanted_file
from observatory.scheduling.scheduler_process import CONSOLE, console_pid, console_process, console_ready
from tests.support.checkout import Checkout
from tests.support.host_processes import wait_for_ended
from tests.support.waiting import PATIENCE_S, until

MEMORY_MIB = 60


@pytest.fixture(scope="module")
def sandbox(fresh: Checkout, rootfs: Path) -> Iterator[Sandbox]:
    """A home in which the console runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(fresh.root))
        patch.setattr(host_process, "START_SECONDS", PATIENCE_S)
        found = Sandbox(fresh.home, rootfs)
        found.make_directory("/srv/lock")
        wanted_file(found).touch()
        console_process(found, root=fresh.root, stack="local").start()
        yield found
        stop_holder(process_lock_file(found, CONSOLE))
        wait_for_ended()


def test_the_console_listens_on_loopback_and_takes_little_memory(sandbox: Sandbox, fresh: Checkout) -> None:
    assert console_ready(sandbox)
    process = psutil.Process(console_pid(sandbox))
    listening = [each.laddr for each in process.net_connections() if each.status == psutil.CONN_LISTEN]
    assert [(each.ip, each.port) for each in listening] == [("127.0.0.1", fresh.ports()["console"])]
    assert process.children() == []  # nothing is read while no page is open
    assert process.memory_full_info().pss < MEMORY_MIB * 2**20
    assert httpx.get(f"http://127.0.0.1:{listening[0].port}/", trust_env=False, timeout=60).status_code == 401


def test_the_console_ends_when_its_home_is_removed(sandbox: Sandbox) -> None:
    pid = console_pid(sandbox)
    assert pid is not None
    shutil.rmtree(
        sandbox.home.rename(sandbox.home.with_name("removed"))
    )  # at once, whatever is written there meanwhile
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, "its end")
    assert process_id(sandbox, CONSOLE) is None
    assert not sandbox.home.exists()
