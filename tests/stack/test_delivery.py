"""Versions come and go on a real stack under load, and no request is lost."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from observatory.database.audit import read_entries
from observatory.database.connection import with_database
from observatory.delivery.journal import Entry, entries
from observatory.delivery.signatures import make_private_key
from observatory.delivery.windows import WEEKDAYS
from observatory.nodes import Paths
from observatory.nodes.haproxy import backend_server, runtime_socket, servers_file
from observatory.runtime import LiveServers, Sandbox
from observatory.runtime.files import short_path
from tests.stack.conftest import a_checkout
from tests.stack.test_monitoring import wait
from tests.support.checkout import SOURCE, UP_TIMEOUT_S, Checkout
from tests.support.imports import HEAVY, run_watched
from tests.support.releases import variant

EMBEDDED = ("--engine", "embedded")
VERSIONS = {
    "v0.2.0": "good",
    "v0.3.0": "failing",
    "v0.4.0": "unready",
    "v0.8.0": "broken",
    "v0.9.0": "slow",
    "v0.10.0": "leaking",
    "v0.11.0": "crashing",
    "v0.12.0": "good",
}
DELIVERY = {"bake_seconds": 12, "gates": {"minimum_requests": 10, "deadline_s": 40, "saturation": 0.8}}
LAST_MIGRATION = "006_supporting_tables.sql"  # which the stack is without, until a release brings it
CANARY = 25  # percent
RATE = 40  # requests a second: enough to judge, little enough for two busy cores


class Load:
    """Readers and writers at a fixed pace, until stopped; `failed` is every answer above 299 and every error."""

    def __init__(self, stack: Checkout) -> None:
        self.url, self.key, self.trusted = stack.output("service_url"), stack.output("api_key"), stack.trusted()
        self.versions: Counter[str] = Counter()
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=self.url, headers=headers, verify=self.trusted, timeout=20) as client:
            while not self._stop.wait(4 / RATE):
                try:
                    self._note(client.post("/v1/logs", json={"items": [line()]}) if number % 2 else client.get(READ))
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))

    def _note(self, answer: httpx.Response) -> None:
        self.versions[answer.headers.get("X-Observatory-Version", "none")] += 1
        if answer.is_error:
            self.failed.append(f"{answer.status_code} {answer.text[:100]}")


READ = "/v1/traces?limit=1"


def line() -> dict[str, str]:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"ts": now, "log_level": "info", "message": "load"}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[Checkout]:
    """A stack with two instances in each fleet, and several versions in its store."""
    with a_checkout(tmp_path_factory.mktemp("delivery"), rootfs) as checkout:
        checkout.configure(delivery=DELIVERY)
        (checkout.root / "migrations" / LAST_MIGRATION).unlink()
        checkout.run("up", *EMBEDDED)
        first = checkout.root / ".observatory/releases/v0.1.0.tar.gz"
        key = (checkout.root / ".observatory/signing-key.pem").read_text()
        for version, fault in VERSIONS.items():
            made = variant(first, version, checkout.root / "made", key=key, fault=fault)
            checkout.run("release", "add", str(made))
        checkout.run("release", "add", str(variant(first, "v0.5.0", checkout.root / "made", key=key, schema_min=99)))
        checkout.run("release", "add", str(variant(first, "v0.7.0", checkout.root / "made", key=key, schema_min=4)))
        yield checkout


def test_only_what_a_trusted_key_has_signed_is_kept_and_deployed(own: Checkout) -> None:
    assert (own.root / ".observatory/signing-key.pem").stat().st_mode & 0o777 == 0o600
    first, made = own.root / ".observatory/releases/v0.1.0.tar.gz", own.root / "made"
    foreign = variant(first, "v0.6.0", made, key=make_private_key())
    assert "which is not trusted" in own.run("release", "add", str(foreign), expect=3).stderr
    own.run("release", "sign", str(foreign))
    own.run("release", "add", str(foreign))
    kept = own.root / ".observatory/releases/v0.6.0.json"
    kept.write_text(kept.read_text().replace('"schema_min": 3', '"schema_min": 2'))
    listed = {each["version"]: each["signer"] for each in own.json("release", "list")}
    assert (listed["v0.1.0"], listed["v0.6.0"]) == ("this-checkout", None)
    refused = own.run(
        "deploy", "application", "--version", "v0.6.0", "--strategy", "blue-green", *EMBEDDED, expect=3
    ).stderr
    assert "was altered" in refused


def test_a_version_comes_by_blue_green_and_goes_back_without_a_lost_request(own: Checkout) -> None:
    with Load(own) as load:
        time.sleep(1)
        done = own.json("deploy", "application", "--version", "v0.2.0", "--strategy", "blue-green", *EMBEDDED)
        assert done["deployment"]["status"] == "promoted"
        assert (done["green"]["version"], done["green"]["weight"]) == ("v0.2.0", 100)
        again = own.json("up", *EMBEDDED)
        assert set(again["summary"]) == {"same"}
        back, loaded = run_watched(own, "rollback", "--method", "blue-green", "--emergency", "--output", "json")
        assert json.loads(back)["blue"]["weight"] == 100
        assert loaded & (HEAVY - {"httpx"}) == set()  # with which the notices are sent meanwhile
        time.sleep(1)
    assert load.failed == []
    assert load.versions["v0.2.0"] > 100
    assert load.versions["v0.1.0"] > 20
    deployment = done["deployment"]["id"]
    assert told(own, "webhook", deployment) == ["start", "step", "success", "rollback", "rolled-back"]
    assert told(own, "pagerduty") == ["resolve", "trigger", "resolve"]
    events = [entry.event for entry in entries(own.root / ".observatory/rollout/local.journal.jsonl")]
    assert not {"not-notified", "not-silenced"} & set(events)
    assert own.json("silence", "list") == []


def told(stack: Checkout, channel: str, deployment: str | None = None) -> list[str]:
    """Return what the local receiver got of deliveries, oldest first: kinds, or PagerDuty's actions."""
    url = f"http://127.0.0.1:{stack.ports()['alert_receiver']}/alerts?receiver=delivery-{channel}"
    got = [record["notification"] for record in httpx.get(url).raise_for_status().json()]
    if channel == "pagerduty":
        return [event["event_action"] for event in got]
    return [each["kind"] for each in got if each["deployment"] == deployment]


@pytest.mark.parametrize(
    ("version", "gate"), [("v0.3.0", "errors"), ("v0.9.0", "p95"), ("v0.10.0", "full"), ("v0.11.0", "restarts")]
)
def test_a_bad_canary_is_rolled_back_by_its_gate_and_few_users_see_it(own: Checkout, version: str, gate: str) -> None:
    with Load(own) as load:
        said = own.run(
            "deploy", "application", "--version", version, "--strategy", "canary",
            "--canary-percentage", str(CANARY), "--bake", "90", *EMBEDDED, expect=1,
        ).stderr  # fmt: skip
    assert gate in said
    assert len(load.failed) < sum(load.versions.values()) * CANARY / 100
    if gate == "full":
        assert load.failed == []  # found before anybody had to wait for a connection
    standing = own.json("status")["rollout"]
    assert (standing["blue"]["weight"], standing["deployment"]["status"]) == (100, "rolled-back")
    assert standing["deployment"]["step"] == 0


def test_a_rollback_to_a_version_takes_over_and_brings_any_kept_one(own: Checkout) -> None:
    canary = ("--version", "v0.2.0", "--strategy", "canary", "--canary-percentage", "10", "--bake", "3600", *EMBEDDED)
    deploying = own.start("deploy", "application", *canary)
    until(lambda: document(own)["green"]["weight"] == 10)
    back = own.json("rollback", "--method", "application", "--version", "v0.1.0", "--yes", *EMBEDDED)
    assert (back["blue"]["version"], back["blue"]["weight"], back["deployment"]["status"]) == (
        "v0.1.0", 100, "rolled-back",
    )  # fmt: skip
    _, said = deploying.communicate(timeout=UP_TIMEOUT_S)
    assert (deploying.returncode, "taken over" in said) == (1, True), said
    forth = own.json("rollback", "--method", "application", "--version", "v0.2.0", "--yes", *EMBEDDED)
    assert (forth["green"]["version"], forth["green"]["weight"], forth["deployment"]["status"]) == (
        "v0.2.0", 100, "promoted",
    )  # fmt: skip
    assert "gate" not in [entry.event for entry in noted_of(own, forth["deployment"]["id"])]
    own.run("rollback", "--method", "blue-green", "--emergency")


def test_an_instance_that_is_out_stays_out_over_a_reload_and_up_puts_it_right(own: Checkout) -> None:
    sandbox = Sandbox(own.home, Path(own.environment["OBSERVATORY_ROOTFS"]))
    servers = LiveServers(sandbox=sandbox, file=servers_file(Paths()), socket=runtime_socket(Paths()))
    taken = backend_server("green", "green-1")
    servers.set_out({taken})
    before = worker(own)
    sandbox.supervisor.signal("haproxy", "USR2")
    until(lambda: worker(own) not in {before, None})
    assert servers.out() == {taken}
    assert own.json("up", *EMBEDDED)["summary"]["update"] >= 1
    assert servers.out() == servers.kept_out() == frozenset()


def test_a_version_that_never_gets_ready_never_gets_traffic(own: Checkout) -> None:
    with Load(own) as load:
        own.run(
            "deploy", "application", "--version", "v0.4.0", "--strategy", "blue-green", "--skip-tests", *EMBEDDED,
            expect=1,
        )  # fmt: skip
    assert load.failed == []
    assert "v0.4.0" not in load.versions
    assert own.json("status")["rollout"]["deployment"]["tests"] == "skipped"


@pytest.mark.parametrize(
    ("version", "message"), [("v0.7.0", "its manifest says"), ("v0.8.0", "/v1/metrics answered 500")]
)
def test_a_version_that_fails_when_it_is_tried_changes_nothing(own: Checkout, version: str, message: str) -> None:
    before, processes = own.json("status")["rollout"], own.processes()
    said = own.run("deploy", "application", "--version", version, "--strategy", "blue-green", *EMBEDDED, expect=1)
    assert message in said.stderr
    assert "nothing was changed" in said.stderr
    assert own.json("status")["rollout"] == before
    assert own.processes() <= processes
    assert not (own.home / "releases/trial").exists()


def test_what_a_killed_trial_left_is_removed_by_the_next(own: Checkout) -> None:
    before = own.processes()
    killed = own.start("deploy", "application", "--version", "v0.4.0", "--strategy", "blue-green", *EMBEDDED)
    while not answers(own.ports()["trial"]):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    assert answers(own.ports()["trial"])
    own.run("deploy", "application", "--version", "v0.8.0", "--strategy", "blue-green", *EMBEDDED, expect=1)
    assert not answers(own.ports()["trial"])
    assert own.processes() <= before


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--version", "v9.9.9", "--strategy", "blue-green"), "not in the store"),
        (("--version", "v0.5.0", "--strategy", "blue-green"), "works with schema 99"),
        (("--version", "v0.2.0", "--strategy", "blue-green", "--target", "blue"), "blue serves"),
        (("--version", "v0.2.0", "--strategy", "canary", "--canary-percentage", "100"), "between 1 and 99"),
        (("--version", "v0.2.0", "--strategy", "rolling"), "no idle capacity"),
    ],
)
def test_what_cannot_be_deployed_is_refused(own: Checkout, arguments: tuple[str, ...], message: str) -> None:
    before = own.json("status")["rollout"]
    assert message in own.run("deploy", "application", *arguments, *EMBEDDED, expect=3).stderr
    assert own.json("status")["rollout"] == before


def test_every_entry_is_in_the_table_and_beside_the_backups(own: Checkout) -> None:
    own.json("deploy", "application", "--version", "v0.2.0", "--strategy", "blue-green", "--bake", "0", *EMBEDDED)
    own.run("rollback", "--method", "blue-green", "--yes", "--reason", "exercise")
    journal = list(entries(own.root / ".observatory/rollout/local.journal.jsonl"))
    database = with_database(own.output("admin_database_url"), "observatory")
    assert {row.id for row in read_entries(database)} == {entry.id for entry in journal}
    assert list(entries(own.home / "data/backups/audit/local.jsonl")) == journal
    last = own.json("report")[-1]
    assert (last["version"], last["strategy"], last["target"], last["outcome"]) == (
        "v0.2.0", "blue-green", "green", "rolled back",
    )  # fmt: skip
    assert last["reason"].startswith("exercise (")
    assert sum(last["gates"].values()) > 0
    assert last["entries"][0]["actor"] == last["actor"]
    assert [each["id"] for each in own.json("report", "--deployment", last["id"])] == [last["id"]]
    assert "no deployment 'd0'" in own.run("report", "--deployment", "d0", expect=2).stderr


def test_an_alert_after_the_promotion_rolls_back_where_the_setting_says_so(own: Checkout) -> None:
    own.json("deploy", "application", "--version", "v0.2.0", "--strategy", "blue-green", "--bake", "0", *EMBEDDED)
    own.configure(delivery={**DELIVERY, "rollback_on_alert": "perform"})
    try:
        Sandbox(own.home, Path(own.environment["OBSERVATORY_ROOTFS"])).supervisor.stop("storage-green-1")
        wait(lambda: own.json("status", expect=1)["rollout"]["blue"]["weight"] == 100)
        last = own.json("report")[-1]
        assert last["outcome"] == "rolled back"
        assert "fires" in last["reason"]
        events = [entry["event"] for entry in last["entries"]]
        assert events.count("perform-rollback") == events.count("rolled-back") == 1
        look = own.json("status", expect=1)["look"]
        assert (look["details"]["deployment"], look["event"]) == (last["id"], "gate")
        assert "Gate at" in own.run("status", expect=1).stdout
    finally:
        own.configure(delivery=DELIVERY)
        own.run("up", *EMBEDDED)


def test_alerts_are_held_back_by_hand_but_those_that_tell_of_an_outage(own: Checkout) -> None:
    wanted = ("--fleet", "green", "--duration", "30m", "--reason", "noise")
    made = own.json("silence", "add", *wanted)["id"]
    assert [each["id"] for each in own.json("silence", "list")] == [made]
    own.run("silence", "end", made)
    assert own.json("silence", "list") == []
    assert "never silenced" in own.run("silence", "add", "--alert", "StorageServiceDown", *wanted, expect=3).stderr
    own.run("silence", "add", "--duration", "soon", "--reason", "noise", "--fleet", "green", expect=2)


def test_outside_the_windows_a_version_is_refused(own: Checkout) -> None:
    later = WEEKDAYS[(datetime.now(UTC).weekday() + 3) % 7]
    own.configure(delivery={**DELIVERY, "windows": [{"days": [later], "opens": "10:00", "closes": "11:00"}]})
    before = own.json("status")["rollout"]
    said = own.run("deploy", "application", "--version", "v0.2.0", "--strategy", "blue-green", *EMBEDDED, expect=3)
    assert "v0.2.0 is a minor change: no window for deployments is open, the next opens" in said.stderr
    assert own.json("status")["rollout"] == before
    own.configure(delivery=DELIVERY)


def test_a_release_comes_by_the_whole_workflow_with_the_migrations_it_needs(own: Checkout) -> None:
    shutil.copy(SOURCE / "migrations" / LAST_MIGRATION, own.root / "migrations")
    with Load(own) as load:
        done = released(own, "v0.12.0")
        assert (done["applied"], done["rollout"]["deployment"]["status"]) == ([Path(LAST_MIGRATION).stem], "promoted")
        assert done["backup_label"]
        assert done["rollout"]["deployment"]["tests"] == "passed"
        time.sleep(1)
    assert load.failed == []
    assert load.versions["v0.12.0"] > 0
    again = released(own, "v0.12.0")
    assert (again["applied"], again["rollout"]["revision"]) == ([], done["rollout"]["revision"])
    assert set(own.json("up", *EMBEDDED)["summary"]) == {"same"}
    own.run("rollback", "--method", "blue-green", "--emergency")


def released(own: Checkout, version: str) -> Any:
    """Deploy a release by the workflow; a busy machine may miss a scrape, which is told and changes nothing."""
    process = own.start("release", "deploy", version, *EMBEDDED, "--output", "json")
    out, err = process.communicate(timeout=600)
    assert process.returncode in (0, 1), err
    done = json.loads(out)
    assert "verification" in done, err
    ill = [check["name"] for check in done["verification"]["checks"] if check["verdict"] != "passed"]
    assert ill in ([], ["monitoring"]), done["verification"]
    return done


def test_a_release_is_not_begun_where_the_checklist_objects(own: Checkout) -> None:
    before = own.json("status")["rollout"]
    assert "needs schema 99" in own.run("release", "deploy", "v0.5.0", *EMBEDDED, expect=3).stderr
    assert own.json("status")["rollout"] == before


def test_while_a_deployment_runs_nothing_else_changes_schema_or_fleets(own: Checkout) -> None:
    wanted = ("--version", "v0.2.0", "--strategy", "canary", "--canary-percentage", str(CANARY))
    running = own.start("deploy", "application", *wanted, "--bake", "600", *EMBEDDED)
    while document(own)["deployment"]["status"] != "shifting":
        assert running.poll() is None, running.communicate()
        time.sleep(0.2)
    assert set(own.json("up", *EMBEDDED)["summary"]) == {"same"}
    own.configure(fleets={"drain_seconds": 19})
    for command in (("up", *EMBEDDED), ("deploy", "database"), ("release", "deploy", "v0.2.0", *EMBEDDED)):
        assert "The deployment lock is held by" in own.run(*command, expect=3).stderr
    own.configure(fleets={})
    own.run("rollout", "abort")
    said = running.communicate(timeout=300)[1]
    assert (running.returncode, "aborted on request" in said) == (1, True), said


def test_steering_without_a_deployment_is_refused(own: Checkout) -> None:
    assert "no deployment is under way" in own.run("rollout", "pause", expect=3).stderr


@pytest.fixture(scope="module")
def pair(own: Checkout) -> Checkout:
    """The same stack with two instances in each fleet."""
    own.configure(fleets={"size": 2})
    own.run("up", *EMBEDDED)
    return own


def test_a_version_comes_by_turns_and_goes_back_without_a_lost_request(pair: Checkout) -> None:
    rolling = ("--version", "v0.2.0", "--strategy", "rolling", "--batch-size", "1", "--bake", "8", *EMBEDDED)
    with Load(pair) as load:
        deploying = pair.start("deploy", "application", *rolling, "--output", "json")
        until(lambda: (document(pair)["blue"]["rolling"] or {}).get("instances") == ["blue-1"] and not out_of_it(pair))
        assert (document(pair)["blue"]["version"], document(pair)["blue"]["rolling"]["version"]) == ("v0.1.0", "v0.2.0")
        assert set(pair.json("up", *EMBEDDED)["summary"]) == {"same"}
        out, err = deploying.communicate(timeout=UP_TIMEOUT_S)
        assert deploying.returncode == 0, err
        done = json.loads(out)
        assert (done["blue"]["version"], done["blue"]["weight"], done["blue"]["rolling"]) == ("v0.2.0", 100, None)
        assert set(pair.json("up", *EMBEDDED)["summary"]) == {"same"}
        assert versions_of(pair) == {"v0.2.0"}
        back = pair.json("rollback", "--method", "blue-green", "--yes", *EMBEDDED)
        assert (back["blue"]["version"], back["blue"]["rolling"]) == ("v0.1.0", None)
    assert load.failed == []
    assert load.versions["v0.2.0"] > 100
    assert versions_of(pair) == {"v0.1.0"}
    assert set(pair.json("up", *EMBEDDED)["summary"]) == {"same"}


def test_a_bad_version_by_turns_is_seen_on_its_first_instance_and_goes_back(pair: Checkout) -> None:
    with Load(pair) as load:
        said = pair.run(
            "deploy", "application", "--version", "v0.3.0", "--strategy", "rolling", *EMBEDDED, expect=1
        ).stderr  # fmt: skip
    assert "errors" in said
    assert moves_of(pair, document(pair)["deployment"]["id"]) == [("moved", ["blue-1"]), ("moved-back", ["blue-1"])]
    assert len(load.failed) < sum(load.versions.values()) * 0.2
    assert versions_of(pair) == {"v0.1.0"}


def test_a_batch_of_all_instances_is_refused(pair: Checkout) -> None:
    arguments = ("--version", "v0.2.0", "--strategy", "rolling", "--batch-size", "2")
    assert "between 1 and 1" in pair.run("deploy", "application", *arguments, *EMBEDDED, expect=3).stderr


def worker(stack: Checkout) -> str | None:
    """Return the pid of the HAProxy that answers, or None while none does."""
    with short_path(stack.home / "run") as run, socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(f"{run}/haproxy.sock")
            connection.sendall(b"show info\n")
            told = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        except OSError:
            return None
    return next((line.split()[1] for line in told.splitlines() if line.startswith("Pid:")), None)


def moves_of(stack: Checkout, deployment: str) -> list[tuple[str, list[str]]]:
    """Return which instances a rolling update moved, and moved back."""
    noted = noted_of(stack, deployment)
    return [(entry.event, entry.details["instances"]) for entry in noted if entry.event in {"moved", "moved-back"}]


def noted_of(stack: Checkout, deployment: str) -> list[Entry]:
    """Return the journal's entries of a deployment."""
    noted = entries(stack.root / ".observatory/rollout/local.journal.jsonl")
    return [entry for entry in noted if entry.details.get("deployment") == deployment]


def out_of_it(stack: Checkout) -> list[str]:
    """Return the instances of the blue fleet that the document has as out."""
    return list((document(stack)["blue"]["rolling"] or {"out": []})["out"])


def document(stack: Checkout) -> Any:
    """Return the rollout document."""
    return json.loads((stack.root / ".observatory/rollout/local.json").read_text())


def versions_of(stack: Checkout) -> set[str]:
    """Return what the blue fleet's instances themselves say that they run."""
    first = stack.ports()["blue"]
    return {httpx.get(f"http://127.0.0.1:{port}/health").json()["version"] for port in (first, first + 1)}


def until(condition: Callable[[], Any]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + UP_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.1)
