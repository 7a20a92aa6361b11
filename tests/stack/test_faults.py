"""Faults of users and of machines: a clear error, and nothing is lost.

The tests of a fault that a stack survives share one, `survivor`; each begins with it healthy. The last ones remove it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg
import pytest

from observatory.database.connection import connect, with_database
from observatory.files.reserve import NAME
from observatory.operations.demonstration import spans
from observatory.runtime import Sandbox
from observatory.workspace import Workspace
from tests.stack.conftest import a_checkout
from tests.support.checkout import UP_TIMEOUT_S, Checkout
from tests.support.ports import free_ports
from tests.support.small_disk import fill, mounted, total

EMBEDDED = ("--engine", "embedded")
POSTMASTER = b"/usr/lib/postgresql/17/bin/postgres "  # its children have titles of their own


WATCHING = {"watcher", "guard", "scheduler"}
OF_HOST = {*WATCHING, "console"}  # which the supervisor does not run


def postmasters(checkout: Checkout) -> list[int]:
    """Return the postmasters of a checkout's stack."""
    return [pid for pid in checkout.processes() if command(pid).startswith(POSTMASTER)]


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""


def traces(checkout: Checkout) -> int:
    url = with_database(checkout.output("admin_database_url"), "observatory")
    with connect(url, purpose="test") as connection:
        row = connection.execute("SELECT count(*) FROM llm_traces").fetchone()
    return int(row[0]) if row else 0


def pids(checkout: Checkout) -> dict[str, int]:
    """Return the process of each daemon, of none that is stopped."""
    return {row.name: row.pid for row in checkout.status().daemons if row.pid}


def kill(checkout: Checkout, *names: str) -> None:
    """Kill daemons, and wait until they are gone and the stack is well again."""
    before = pids(checkout)
    for name in names:
        os.kill(before[name], signal.SIGKILL)
    until(lambda: not any(command(before[name]) for name in names) and checkout.is_well())


def until(condition: Callable[[], object], *, pause_s: float = 1) -> None:
    """Wait until a condition holds; fail after `UP_TIMEOUT_S`.

    The pause is long because most conditions look at each daemon of a stack.
    """
    deadline = time.monotonic() + UP_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(pause_s)


@contextlib.contextmanager
def stopped(*processes: int) -> Iterator[None]:
    """Stop processes of the host until the end of the block."""
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


class Writer:
    """Writes traces of its own until the end of the block, one after the other; afterwards they can be counted."""

    def __init__(self, checkout: Checkout) -> None:
        self._checkout, self._ended = checkout, threading.Event()
        self._environment = f"writer-{time.time_ns()}"
        self.acknowledged = 0

    def __enter__(self) -> Self:
        from tests.stack.test_up import client  # noqa: PLC0415 - it loads psycopg and httpx

        service = client(self._checkout)
        self._thread = threading.Thread(target=self._write, args=(service,))
        self._thread.start()
        self.write_more()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def write_more(self) -> None:
        """Wait until further traces are acknowledged."""
        before = self.acknowledged
        until(lambda: self.acknowledged > before)

    def stored(self) -> int:
        """Return how many of the traces are in the database, and remove them."""
        url = with_database(self._checkout.output("admin_database_url"), "observatory")
        with connect(url, purpose="test") as connection:
            return connection.execute("DELETE FROM llm_traces WHERE environment = %s", [self._environment]).rowcount

    def _write(self, service: httpx.Client) -> None:
        with service:
            while not self._ended.wait(0.05):
                made = spans(5, now=datetime.now(UTC), seed=time.time_ns())
                items = [{**item, "environment": self._environment} for item in made]
                with contextlib.suppress(httpx.HTTPError):
                    if service.post("/v1/traces", json={"items": items}).is_success:
                        self.acknowledged += len(items)


@pytest.fixture(scope="module")
def survivor_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The checkout of the shared stack, whose stacks are on a small disk, and the reason why they are not."""
    root = tmp_path_factory.mktemp("survivor")
    with mounted(root / ".observatory/stacks", "1500m") as problem:
        yield root, problem


@pytest.fixture(scope="module")
def survivor_checkout(survivor_disk: tuple[Path, str], rootfs: Path) -> Iterator[Checkout]:
    with a_checkout(survivor_disk[0], rootfs) as checkout:
        yield checkout


@pytest.fixture
def survivor(survivor_checkout: Checkout) -> Checkout:
    """The shared stack, up and healthy, whatever the test before has left."""
    if not survivor_checkout.is_well():
        survivor_checkout.run("up", *EMBEDDED)
        until(survivor_checkout.is_well)  # its status is of half a minute later at most
    return survivor_checkout


def test_a_wrong_setting_stops_before_anything_is_made(checkout: Checkout) -> None:
    checkout.configure(fleets={"sise": 2})
    said = checkout.run("up", *EMBEDDED, expect=2).stderr
    assert re.search(
        r"Pulumi\.local\.yaml:\d+: llm-observatory:fleets\.sise: unknown setting; did you mean 'size'", said
    )
    assert not (checkout.root / ".observatory").exists()


def test_an_up_that_is_disturbed_at_many_steps_is_finished_by_the_next(checkout: Checkout) -> None:
    """Refused, killed, interrupted, without its supervisor, without a terminal: the last one makes a whole stack.

    `down` removes it, although it is dead by then.
    """
    refused_for_a_port(checkout)
    killed_after_the_refusal_of_another(checkout, "create Daemon etcd")
    interrupted_at(checkout, "create Daemon patroni")
    without_its_supervisor(checkout, "create Daemon pgbouncer")
    for step in ("create Daemon storage", "create Scheduler", "write 1000 traces"):
        killed_at(checkout, step)
    without_stderr(checkout)
    assert checkout.well_status()["healthy"]
    assert len(postmasters(checkout)) == 1
    assert 1000 <= traces(checkout) <= 2000  # the killed one may have written some of its own
    assert set(checkout.json("up", *EMBEDDED)["summary"]) == {"same"}
    checkout.kill_all()
    checkout.run("down", "--yes", *EMBEDDED)
    assert not (checkout.root / ".observatory/stacks/local").exists()


def refused_for_a_port(checkout: Checkout) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", checkout.ports()["service"]))
        held.listen()
        said = checkout.run("up", *EMBEDDED, expect=3).stderr
        assert f"ports.service: {checkout.ports()['service']} is held by process {os.getpid()}" in said


def up_until(checkout: Checkout, step: str) -> subprocess.Popen[str]:
    """Start `up`, and return once it has begun a step."""
    process = checkout.start("up", *EMBEDDED)
    wait_for(process, step)
    return process


def wait_for(process: subprocess.Popen[str], step: str) -> None:
    assert process.stderr
    assert any(step in line for line in process.stderr), f"up never came to {step}"


def killed_at(checkout: Checkout, step: str) -> None:
    kill_at(checkout.start("up", *EMBEDDED), step)


def kill_at(process: subprocess.Popen[str], step: str) -> None:
    wait_for(process, step)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def killed_after_the_refusal_of_another(checkout: Checkout, step: str) -> None:
    """Of two at once on a fresh checkout one is refused, and the other one goes on."""
    both = [checkout.start("up", *EMBEDDED) for _ in range(2)]
    until(lambda: any(process.poll() is not None for process in both), pause_s=0.1)
    refused, other = sorted(both, key=lambda process: process.poll() is None)
    said = refused.communicate()[1]
    assert refused.returncode == 3, said
    assert "is locked by" in said
    kill_at(other, step)


def interrupted_at(checkout: Checkout, step: str) -> None:
    """The step is finished, and what is done is printed."""
    process = up_until(checkout, step)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=UP_TIMEOUT_S)
    assert process.returncode == 130, said
    assert "stopping: waiting for the steps in flight" in said
    assert re.search(r"done: \d+ steps, the last create ", said)
    assert "unfinished" not in said
    assert "`observatory up` continues; `observatory down` removes the stack" in said


def without_its_supervisor(checkout: Checkout, step: str) -> None:
    """It ends with an error that names the supervisor, or with a whole stack if the supervisor came back in time."""
    process = up_until(checkout, step)
    supervisor = Sandbox(checkout.home, Path(checkout.environment["OBSERVATORY_ROOTFS"])).supervisor_pid()
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    _, said = process.communicate(timeout=UP_TIMEOUT_S)
    assert process.returncode in (0, 1), said
    if process.returncode:
        assert f"the supervisor of {checkout.home} does not answer" in said
        assert "Run `observatory up`" in said
    assert "Traceback" not in said


def without_stderr(checkout: Checkout) -> None:
    """It continues when its stderr is closed."""
    process = checkout.start("up", *EMBEDDED)
    assert process.stderr
    process.stderr.readline()
    process.stderr.close()
    assert process.stdout
    with process.stdout:
        assert "Traces: 1000 sent" in process.stdout.read()
    assert process.wait() == 0


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_step_ends_every_child(checkout: Checkout, number: signal.Signals) -> None:
    """The service is being built: pip waits for a registry that never answers."""
    shutil.rmtree(checkout.root / "dist")
    with socket.create_server(("127.0.0.1", 0)) as registry:
        registry.settimeout(UP_TIMEOUT_S)
        host, port = registry.getsockname()
        changes = {"PIP_INDEX_URL": f"http://{host}:{port}/simple", "PIP_EXTRA_INDEX_URL": "", "no_proxy": host}
        cache = checkout.root / "cache"  # empty, so that pip is needed
        process = checkout.start("up", *EMBEDDED, OBSERVATORY_CACHE_DIR=str(cache), **changes)
        with registry.accept()[0]:
            process.send_signal(number)
            _, said = process.communicate(timeout=UP_TIMEOUT_S)
    assert process.returncode == 130, said
    assert "interrupted; what was brought up is kept; run the command again" in said
    assert checkout.processes() == set()
    assert not list((checkout.root / "dist").glob(".*"))


def test_commands_without_a_stack_are_refused_or_have_nothing_to_do(checkout: Checkout) -> None:
    assert "(stacks: local" in checkout.run("up", "-e", "lokal", expect=2).stderr
    told = checkout.json("outputs", "nothing", "-e", "nope", expect=2)  # an error is also a document
    assert told["exit_code"] == 2
    assert "no stack 'nope'" in told["error"]["message"]
    assert "--yes" in checkout.run("down", expect=3).stderr  # without a terminal
    checkout.run("down", "--yes")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
@pytest.mark.parametrize(("place", "size"), [("stacks", "48m"), ("", "8m")])
def test_a_full_disk_is_named_and_nothing_is_left_running(checkout: Checkout, place: str, size: str) -> None:
    home = checkout.root / ".observatory" / place
    home.mkdir(parents=True)
    script = (
        f"mount -t tmpfs -o size={size} tmpfs {home} && "
        f"{sys.executable} -m observatory up --engine embedded; echo exit $? >&2; "
        f"{sys.executable} -m observatory down --yes --engine embedded"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        cwd=checkout.root,
        env={**os.environ, **checkout.environment},
        capture_output=True,
        text=True,
        timeout=UP_TIMEOUT_S,
        check=False,
    )
    assert "exit 1" in done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert checkout.processes() == set()


def test_a_damaged_rollout_document_is_recovered_from_a_copy_or_named(checkout: Checkout) -> None:
    checkout.run("bootstrap")
    documents = checkout.root / ".observatory/rollout"
    (documents / "local.json").write_text("{")
    recovered = checkout.run("bootstrap").stderr
    assert "rollout document recovered" in recovered
    assert "local.json: not a rollout document" in recovered
    for document in documents.glob("local.json*"):
        document.write_text("{")
    refused = checkout.run("up", *EMBEDDED, expect=1).stderr
    assert "local.json: not a rollout document" in refused
    assert "Traceback" not in refused
    for document in documents.glob("local.json*"):
        document.unlink()


def test_a_salt_of_a_lost_passphrase_is_dropped(checkout: Checkout) -> None:
    config = checkout.root / "Pulumi.local.yaml"
    before = config.read_text()
    config.write_text(before + "encryptionsalt: v1:kGo4qyUzebQ=:v1:sdytofQAt3xnDcSQ:9WgMlAbUwU5ZzDy+IKT2cAwLEjEjJw==\n")
    checkout.run("bootstrap")
    assert config.read_text() == before
    assert set(checkout.json("preview", *EMBEDDED)["summary"]) == {"create"}


def test_up_restores_the_stack_and_its_data_after_a_power_cut(survivor: Checkout) -> None:
    key = survivor.output("api_key")
    survivor.kill_all()
    assert survivor.json("status", expect=1)["healthy"] is False
    assert survivor.json("up", *EMBEDDED)["status"]["healthy"]
    assert traces(survivor) == 1000
    assert survivor.output("api_key") == key


def test_a_killed_supervisor_comes_back_and_no_row_is_lost(survivor: Checkout) -> None:
    """Without a supervisor, `status` reports what runs; then all daemons restart, and the alert is delivered."""
    from tests.stack.test_monitoring import Monitoring  # noqa: PLC0415 - it imports this module

    before = pids(survivor)
    with Writer(survivor) as writer:
        with stopped(*(before[name] for name in WATCHING)):
            os.kill(before["supervisor"], signal.SIGKILL)
            os.kill(before["pgbouncer"], signal.SIGKILL)
            until(lambda: not any(command(before[name]) for name in ("supervisor", "pgbouncer")))
            rows: dict[str, Any] = {}

            def health(*names: str) -> set[str]:
                return {rows[name]["health"] for name in names}

            def others_are_ready() -> bool:  # a busy daemon may not answer a single probe in time
                rows.update({row["name"]: row for row in survivor.json("status", expect=1)["daemons"]})
                assert health("supervisor", "pgbouncer") == {"stopped"}
                return health("patroni", "postgresql", "valkey", "haproxy") == {"ready"}

            until(others_are_ready)
            assert rows["patroni"]["pid"] == before["patroni"]
        until(survivor.is_well)
        writer.write_more()
    after = pids(survivor)
    restarted = before.keys() - OF_HOST
    assert {name for name in restarted if after[name] != before[name]} == restarted
    assert len(postmasters(survivor)) == 1
    assert writer.stored() >= writer.acknowledged
    monitoring = Monitoring(survivor)
    until(lambda: ("StorageSupervisorDown", "firing") in monitoring.received("pagerduty"))


def test_watcher_guard_and_scheduler_keep_each_other_running(survivor: Checkout) -> None:
    for names in (("watcher", "scheduler"), ("guard", "watcher"), ("supervisor", "guard", "scheduler")):
        kill(survivor, *names)
    assert set(survivor.json("up", *EMBEDDED)["summary"]) == {"same"}


def test_a_stopped_supervisor_is_continued(survivor: Checkout) -> None:
    before = pids(survivor)
    os.kill(before["supervisor"], signal.SIGSTOP)
    until(survivor.is_well)
    assert pids(survivor) == before


def test_no_watcher_is_left_without_the_home_of_its_stack(survivor: Checkout) -> None:
    before, away = pids(survivor), survivor.home.with_name("away")
    survivor.home.rename(away)
    try:
        until(lambda: not any(command(before[name]) for name in OF_HOST))
        assert not survivor.home.exists()
    finally:
        shutil.rmtree(survivor.home, ignore_errors=True)
        away.rename(survivor.home)


def test_a_full_disk_heals_when_there_is_space(survivor: Checkout, survivor_disk: tuple[Path, str]) -> None:
    """The alert fires before the disk is full."""
    from tests.stack.test_monitoring import Monitoring  # noqa: PLC0415 - it imports this module

    root, problem = survivor_disk
    if problem:
        pytest.skip(problem)
    monitoring, filler = Monitoring(survivor), root / ".observatory/stacks/filler"
    with Writer(survivor) as writer:
        try:
            fill(filler, leave=total(filler.parent) // 10)
            until(lambda: ("StorageDiskCritical", "firing") in monitoring.received("pagerduty"))
            fill(filler)
            until(lambda: not (survivor.home / NAME).exists())
            while postmasters(survivor):
                fill(filler)  # also with what the reserve has released
                time.sleep(0.5)
        finally:
            filler.unlink()
        until(survivor.is_well)
        writer.write_more()
    assert writer.stored() >= writer.acknowledged
    until((survivor.home / NAME).exists)


def test_a_killed_daemon_is_restarted(survivor: Checkout) -> None:
    kill(survivor, "etcd", "patroni", "postgresql", "pgbouncer", "valkey", "storage-blue-1", "haproxy")
    assert traces(survivor) == 1000


def test_up_after_down_with_kept_data_continues_with_the_data(survivor: Checkout) -> None:
    key = survivor.output("api_key")
    clone = survivor.json("backup", "flashback", "--to-time", "latest")["clone"]
    psycopg.connect(clone["conninfo"]).close()
    survivor.run("down", "--keep-data")
    assert survivor.processes() == set()
    assert not Path(clone["host"]).exists()
    assert survivor.json("up", *EMBEDDED)["status"]["healthy"]
    assert traces(survivor) == 1000
    assert survivor.output("api_key") == key


def test_a_daemon_that_dies_at_start_is_reported_with_its_last_log_lines(survivor: Checkout) -> None:
    state = survivor.home / "data/alertmanager/nflog"  # which no declaration has, so that `up` does not repair it
    if state.exists():
        state.unlink()
    state.mkdir()
    os.kill(pids(survivor)["alertmanager"], signal.SIGKILL)
    said = survivor.run("up", *EMBEDDED, expect=1).stderr
    assert "alertmanager" in said
    assert "is a directory" in said
    state.rmdir()
    survivor.run("up", *EMBEDDED)


def test_a_failing_up_under_load_fails_no_request_and_changed_settings_take_effect(survivor: Checkout) -> None:
    """A changed setting that cannot work leaves the running fleets as they are.

    Those that can include a restart of PostgreSQL, other ports, and another size of the fleets.
    """
    statuses: list[int] = []
    done = threading.Event()
    key, url, trusted = survivor.output("api_key"), survivor.output("service_url"), survivor.trusted()

    def read() -> None:
        import httpx  # noqa: PLC0415 - in its thread

        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, verify=trusted) as client:
            while not done.is_set():
                statuses.append(client.get("/v1/traces?limit=1").status_code)

    reading = threading.Thread(target=read)
    reading.start()
    with socket.socket() as held:
        taken = survivor.ports()["green"] + 1
        held.bind(("127.0.0.1", taken))
        held.listen()
        survivor.configure(fleets={"size": 2})
        assert str(taken) in survivor.run("up", *EMBEDDED, expect=3).stderr
    done.set()
    reading.join()
    assert set(statuses) == {200}
    moved = free_ports() | {
        name: port for name, port in survivor.ports().items() if name.startswith(("etcd", "patroni"))
    }
    survivor.configure(database={"shared_buffers_mb": 64, "max_connections": 50}, fleets={"size": 2}, ports=moved)
    status = survivor.json("up", *EMBEDDED)["status"]
    assert status["healthy"]
    assert [d["name"] for d in status["daemons"] if d["name"].startswith("storage")] == [
        f"storage-{fleet}-{index}" for fleet in ("blue", "green") for index in (1, 2)
    ]
    url = survivor.output("admin_database_url")
    assert f"port={moved['postgres']}" in url
    with connect(url, purpose="test") as connection:
        for name, wanted in (("shared_buffers", "64MB"), ("max_connections", "50"), ("port", str(moved["postgres"]))):
            assert connection.execute("SELECT current_setting(%s)", [name]).fetchone() == (wanted,)
    assert traces(survivor) == 1000
    assert set(survivor.json("up", *EMBEDDED)["summary"]) == {"same"}


def test_a_supervisor_that_is_killed_during_an_up_comes_back(survivor: Checkout) -> None:
    survivor.configure(database={"shared_buffers_mb": 48})
    without_its_supervisor(survivor, "update Daemon patroni")
    assert survivor.json("up", *EMBEDDED)["status"]["healthy"]
    with connect(survivor.output("admin_database_url"), purpose="test") as connection:
        assert connection.execute("SHOW shared_buffers").fetchone() == ("48MB",)
    assert traces(survivor) == 1000


def test_a_lost_rollout_document_does_not_undo_the_rollout(survivor: Checkout) -> None:
    store = Workspace(root=survivor.root, stack="local").rollout
    document = store.read()
    assert document is not None
    store.compare_and_set(document, document.with_weight("green", 100))
    survivor.run("up", *EMBEDDED)
    for lost in ([store.path], list(store.path.parent.glob("local.json*"))):  # without and with its copies
        for path in lost:
            path.unlink()
        found = survivor.status().rollout
        assert found is not None
        assert found.green.weight == 100
        assert set(survivor.json("up", *EMBEDDED)["summary"]) == {"same"}
        assert json.loads(store.path.read_text())["green"]["weight"] == 100
    assert survivor.json("outputs")["active_fleet"] == "green"


def test_a_lost_passphrase_is_reported_and_the_stack_can_be_removed(survivor: Checkout) -> None:
    (survivor.root / ".observatory/passphrase").unlink()
    for command_line in (("up", *EMBEDDED), ("preview", *EMBEDDED), ("outputs", "--show-secrets")):
        said = survivor.run(*command_line, expect=2).stderr
        assert "from a copy, or remove the stack" in said
    assert not (survivor.root / ".observatory/passphrase").exists()
    assert survivor.well_status()["healthy"]
    for _ in range(2):
        survivor.run("down", "--yes", *EMBEDDED)
        assert survivor.processes() == set()
        assert not survivor.home.exists()
