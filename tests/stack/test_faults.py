"""Faults of users and of machines: a clear error, and nothing is lost.

The tests of a fault that a stack survives share one, `survivor`; each begins with it healthy. The last ones remove it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from observatory.database.connection import connect, with_database
from tests.stack.conftest import a_checkout
from tests.support.checkout import UP_TIMEOUT_S, Checkout, free_ports

EMBEDDED = ("--engine", "embedded")
# A path with characters that shells, URLs and connection strings read, so deep that its sockets exceed 107 bytes.
ODD = 'it\'s a 100% "survivor" #1? é ' + "deep" * 30
POSTMASTER = b"/usr/lib/postgresql/17/bin/postgres "  # its children have titles of their own


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


@pytest.fixture(scope="module")
def survivor_checkout(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[Checkout]:
    with a_checkout(tmp_path_factory.mktemp(ODD), rootfs) as checkout:
        yield checkout


@pytest.fixture
def survivor(survivor_checkout: Checkout) -> Checkout:
    """The shared stack, up and healthy."""
    assert survivor_checkout.json("up", *EMBEDDED)["status"]["healthy"]
    return survivor_checkout


def test_a_wrong_setting_stops_before_anything_is_made(checkout: Checkout) -> None:
    checkout.configure(fleets={"sise": 2})
    said = checkout.run("up", *EMBEDDED, expect=2).stderr
    assert re.search(
        r"Pulumi\.local\.yaml:\d+: llm-observatory:fleets\.sise: unknown setting; did you mean 'size'", said
    )
    assert not (checkout.root / ".observatory").exists()


def test_an_unknown_stack_is_refused_and_the_stacks_are_listed(checkout: Checkout) -> None:
    assert "(stacks: local" in checkout.run("up", "-e", "lokal", expect=2).stderr


def test_a_port_in_use_is_named_with_its_setting_and_its_holder(checkout: Checkout) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", checkout.ports()["service"]))
        held.listen()
        said = checkout.run("up", *EMBEDDED, expect=3).stderr
        assert f"ports.service: {checkout.ports()['service']} is held by process {os.getpid()}" in said
    assert checkout.json("up", *EMBEDDED)["status"]["healthy"]


def test_two_ups_at_once_make_one_stack(checkout: Checkout) -> None:
    both = [checkout.start("up", *EMBEDDED) for _ in range(2)]
    said = [process.communicate(timeout=UP_TIMEOUT_S)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 3], [0, 0]), said
    if codes == [0, 3]:
        assert any("is locked by" in one for one in said)
    assert checkout.json("status")["healthy"]
    assert traces(checkout) in (1000, 2000)


KILLED_AT = (
    ("create Machine", "create Daemon patroni", "create Scheduler"),
    ("create Daemon etcd", "create Daemon storage", "write 1000 traces"),
)


@pytest.mark.parametrize("steps", KILLED_AT, ids=["1", "2"])
def test_a_killed_up_is_continued_by_the_next(checkout: Checkout, steps: tuple[str, ...]) -> None:
    for step in steps:
        process = checkout.start("up", *EMBEDDED)
        assert process.stderr
        seen = any(step in line for line in process.stderr)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert seen, f"up never came to {step}"
    status = checkout.json("up", *EMBEDDED)["status"]
    assert status["healthy"]
    assert len(postmasters(checkout)) == 1
    assert traces(checkout) in (1000, 2000)


def test_an_interrupted_up_finishes_its_step_and_prints_what_is_done(checkout: Checkout) -> None:
    process = checkout.start("up", *EMBEDDED)
    assert process.stderr
    for line in process.stderr:
        if "create Daemon patroni" in line:
            process.send_signal(signal.SIGINT)
            break
    _, said = process.communicate(timeout=UP_TIMEOUT_S)
    assert process.returncode == 130, said
    assert "stopping: waiting for the steps in flight" in said
    assert re.search(r"done: \d+ steps, the last create ", said)
    assert "unfinished" not in said
    assert "`observatory up` continues; `observatory down` removes the stack" in said
    assert checkout.json("up", *EMBEDDED)["status"]["healthy"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_step_ends_every_child(checkout: Checkout, number: signal.Signals) -> None:
    process = checkout.start("up", *EMBEDDED)
    assert process.stderr
    assert any("… storage service" in line for line in process.stderr)
    time.sleep(1)  # now it is built, by other processes
    process.send_signal(number)
    _, said = process.communicate(timeout=UP_TIMEOUT_S)
    assert process.returncode == 130, said
    assert "interrupted; run the command again" in said
    assert checkout.processes() == set()
    assert not list((checkout.root / "dist").glob(".*"))


def test_up_continues_when_stderr_is_closed(checkout: Checkout) -> None:
    process = checkout.start("up", *EMBEDDED)
    assert process.stderr
    process.stderr.readline()
    process.stderr.close()
    assert process.stdout
    with process.stdout:
        assert "Traces: 1000 sent" in process.stdout.read()
    assert process.wait() == 0
    assert checkout.json("status")["healthy"]


def test_down_on_a_fresh_checkout_has_nothing_to_do(checkout: Checkout) -> None:
    checkout.run("down", "--yes")


def test_an_error_is_also_a_json_document(checkout: Checkout) -> None:
    told = checkout.json("outputs", "nothing", "-e", "nope", expect=2)
    assert told["exit_code"] == 2
    assert "no stack 'nope'" in told["error"]["message"]


def test_down_without_a_terminal_needs_yes(checkout: Checkout) -> None:
    assert "--yes" in checkout.run("down", expect=3).stderr


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


def test_a_damaged_rollout_document_is_named(checkout: Checkout) -> None:
    checkout.run("bootstrap")
    (checkout.root / ".observatory/rollout/local.json").write_text("{")
    said = checkout.run("up", *EMBEDDED, expect=1).stderr
    assert "local.json: not a rollout document" in said
    assert "Traceback" not in said
    (checkout.root / ".observatory/rollout/local.json").unlink()


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


def test_a_killed_supervisor_leaves_no_second_postmaster(survivor: Checkout) -> None:
    supervisors = [pid for pid in survivor.processes() if b"supervisord" in command(pid)]
    for pid in supervisors:
        os.kill(pid, signal.SIGKILL)
    assert survivor.json("up", *EMBEDDED)["status"]["healthy"]
    assert len(postmasters(survivor)) == 1
    assert traces(survivor) == 1000


def test_a_killed_daemon_is_restarted(survivor: Checkout) -> None:
    status = survivor.json("up", *EMBEDDED)["status"]
    daemons = {daemon["name"]: daemon["pid"] for daemon in status["daemons"]}
    for name in ("etcd", "patroni", "postgresql", "pgbouncer", "valkey", "storage-blue-1", "haproxy"):
        os.kill(daemons[name], signal.SIGKILL)
    deadline = time.monotonic() + UP_TIMEOUT_S
    while survivor.exit_code("status") and time.monotonic() < deadline:
        time.sleep(0.5)
    assert survivor.json("status")["healthy"]
    assert traces(survivor) == 1000


def test_up_after_down_with_kept_data_continues_with_the_data(survivor: Checkout) -> None:
    key = survivor.output("api_key")
    survivor.run("down", "--keep-data")
    assert survivor.processes() == set()
    assert survivor.json("up", *EMBEDDED)["status"]["healthy"]
    assert traces(survivor) == 1000
    assert survivor.output("api_key") == key


def test_a_daemon_that_dies_at_start_is_reported_with_its_last_log_lines(survivor: Checkout) -> None:
    launcher = next((survivor.root / ".observatory/stacks/local/releases/blue").glob("*/bin/storage-service"))
    original, mode = launcher.read_bytes(), launcher.stat().st_mode
    launcher.chmod(0o700)
    launcher.write_text("#!/bin/sh\necho the disk of the moon is full\nexit 7\n")
    os.kill(next(d["pid"] for d in survivor.json("status")["daemons"] if d["name"] == "storage-blue-1"), signal.SIGKILL)
    said = survivor.run("up", *EMBEDDED, expect=1).stderr
    assert "storage-blue-1" in said
    assert "the disk of the moon is full" in said
    launcher.write_bytes(original)
    launcher.chmod(mode)


def test_a_failing_up_under_load_fails_no_request(survivor: Checkout) -> None:
    """A changed setting that cannot work leaves the running fleets as they are."""
    statuses: list[int] = []
    done = threading.Event()
    key, url, trusted = survivor.output("api_key"), survivor.output("service_url"), survivor.trusted()

    def read() -> None:
        import httpx  # noqa: PLC0415 - in its thread

        with httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=10, verify=trusted
        ) as client:
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
    assert survivor.json("up", *EMBEDDED)["status"]["healthy"]


def test_changed_settings_take_effect_on_a_running_stack(survivor: Checkout) -> None:
    """Including a restart of PostgreSQL, other ports, and another size of the fleets."""
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


def test_a_lost_rollout_document_does_not_undo_the_rollout(survivor: Checkout) -> None:
    file = survivor.root / ".observatory/rollout/local.json"
    document = json.loads(file.read_text())
    document["blue"]["weight"], document["green"]["weight"] = 0, 100
    file.write_text(json.dumps(document))
    survivor.run("up", *EMBEDDED)
    file.unlink()
    assert survivor.json("status")["rollout"]["green"]["weight"] == 100
    assert set(survivor.json("up", *EMBEDDED)["summary"]) == {"same"}
    assert json.loads(file.read_text())["green"]["weight"] == 100
    assert survivor.json("outputs")["active_fleet"] == "green"


def test_a_lost_passphrase_is_reported_and_the_stack_can_be_removed(survivor: Checkout) -> None:
    (survivor.root / ".observatory/passphrase").unlink()
    for command_line in (("up", *EMBEDDED), ("preview", *EMBEDDED), ("outputs", "--show-secrets")):
        said = survivor.run(*command_line, expect=2).stderr
        assert "from a copy, or remove the stack" in said
    assert not (survivor.root / ".observatory/passphrase").exists()
    assert survivor.json("status")["healthy"]
    survivor.run("down", "--yes", *EMBEDDED)
    assert survivor.processes() == set()
    assert survivor.json("up", *EMBEDDED)["status"]["healthy"]


def test_down_removes_a_dead_stack(survivor: Checkout) -> None:
    survivor.kill_all()
    survivor.run("down", "--yes", *EMBEDDED)
    assert not (survivor.root / ".observatory/stacks/local").exists()
