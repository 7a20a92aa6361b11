"""Versions come and go on a real stack under load, and no request is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from observatory.database.audit_table import read_entries
from observatory.database.connection import with_database
from observatory.database.roles.audit_schema import ROWS_CHANGED
from observatory.documents.journal import entries
from observatory.nodes import Paths
from observatory.nodes.haproxy import backend_server, runtime_socket, servers_file
from observatory.operations.application import NICENESS
from observatory.runtime import LiveServers, Sandbox
from observatory.security.signatures import make_private_key
from observatory.settings.windows import WEEKDAYS
from tests.stack.conftest import a_checkout
from tests.stack.test_monitoring import Monitoring, wait
from tests.support.checkout import SOURCE, UP_TIMEOUT_S, Checkout
from tests.support.ci import write_program
from tests.support.delivery import (
    DELIVERY,
    EMBEDDED,
    Load,
    answers,
    bring_up_with_versions,
    document,
    noted_of,
    notifications_of,
    released,
    until,
    worker,
)
from tests.support.imports import HEAVY, run_watched
from tests.support.releases import variant

LAST_MIGRATION = "008_quiet_refresh"  # which the stack is without, until a release brings it
CANARY = 25  # percent
RATE = 20  # requests a second: no version here is judged by its errors
UNTRIED = ("--skip-tests", *EMBEDDED)  # where the trial, which takes longest, is not what a test is about


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[Checkout]:
    """A stack with several versions in its store, and without the last migration."""
    with a_checkout(tmp_path_factory.mktemp("delivery"), rootfs) as checkout:
        for file in (checkout.root / "migrations").glob(f"{LAST_MIGRATION}.*"):
            file.unlink()
        bring_up_with_versions(checkout, "v0.2.0", "v0.4.0", "v0.5.0", "v0.7.0", "v0.8.0", "v0.12.0")
        yield checkout


def test_only_releases_signed_by_a_trusted_key_are_stored_and_deployed(own: Checkout) -> None:
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
    assert "was changed" in refused


def test_a_draining_instance_stays_drained_over_a_reload_and_up_restores_it(own: Checkout) -> None:
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
    sandbox.supervisor.stop("storage-green-1")
    until(lambda: op_state(servers, taken) == "0")  # it is checked again
    sandbox.supervisor.start("storage-green-1")
    until(lambda: op_state(servers, taken) == "2")


def op_state(servers: LiveServers, name: str) -> str:
    """Return whether HAProxy has a server running, `2`, or stopped, `0`."""
    states = {f"{server['be_name']}/{server['srv_name']}": server["srv_op_state"] for server in servers.servers()}
    return states[name]


def test_blue_green_and_its_rollback_lose_no_request_and_are_reported(own: Checkout) -> None:
    emergency = ("rollback", "--method", "blue-green", "--emergency", "--reason", "exercise")
    with Load(own, RATE) as load:
        time.sleep(1)
        done = own.json("deploy", "application", "--version", "v0.2.0", "--strategy", "blue-green", *EMBEDDED)
        assert done["deployment"]["status"] == "promoted"
        assert (done["green"]["version"], done["green"]["weight"]) == ("v0.2.0", 100)
        until(lambda: load.versions["v0.2.0"] > 100)
        back, loaded = run_watched(own, *emergency, "--output", "json")
        rolled_back = json.loads(back)
        assert (rolled_back["blue"]["weight"], rolled_back["green"]["stopped"]) == (100, ["green-1"])
        assert loaded & (HEAVY - {"httpx"}) == set()  # with which the notices are sent meanwhile
        time.sleep(1)
    assert load.failed == []
    assert load.versions["v0.2.0"] > 100
    assert load.versions["v0.1.0"] > 20
    deployment = done["deployment"]["id"]
    assert notifications_of(own, "webhook", deployment) == ["start", "step", "success", "rollback", "rolled-back"]
    assert notifications_of(own, "pagerduty") == ["resolve", "trigger", "resolve"]
    events = [entry.event for entry in entries(own.root / ".observatory/rollout/local.journal.jsonl")]
    assert not {"not-notified", "not-silenced", "not-stopped"} & set(events)
    again = own.json("up", *EMBEDDED)
    assert set(again["summary"]) == {"same"}
    assert (health_of(again["status"], "storage-green-1"), again["status"]["healthy"]) == ("off", True)
    silences = json.loads(Monitoring(own).get("alertmanager", "/api/v2/silences"))
    assert {each["status"]["state"] for each in silences} == {"expired"}
    check_report(own, deployment)


def check_audit(own: Checkout) -> None:
    """Every entry is in the table and beside the backups."""
    journal = list(entries(own.root / ".observatory/rollout/local.journal.jsonl"))
    database = with_database(own.output("admin_database_url"), "observatory")
    commands = {row.id for row in read_entries(database) if row.event != ROWS_CHANGED}
    assert commands == {entry.id for entry in journal}
    for repository in ("backups", "backups-2"):
        assert list(entries(own.home / f"data/{repository}/audit/local.jsonl")) == journal


def check_report(own: Checkout, deployment: str) -> None:
    """The report has the deployment of v0.2.0 and its rollback as an exercise."""
    last = own.json("report")[-1]
    assert (last["id"], last["version"], last["strategy"], last["target"], last["outcome"]) == (
        deployment, "v0.2.0", "blue-green", "green", "rolled back",
    )  # fmt: skip
    assert last["reason"].startswith("exercise (")
    assert sum(last["gates"].values()) > 0
    assert last["entries"][0]["actor"] == last["actor"]
    assert [each["id"] for each in own.json("report", "--deployment", last["id"])] == [last["id"]]
    assert "no deployment 'd0'" in own.run("report", "--deployment", "d0", expect=2).stderr


def test_a_rollback_to_any_stored_version_takes_over_and_leads_out_of_a_frozen_fleet(own: Checkout) -> None:
    canary = ("--version", "v0.2.0", "--strategy", "canary", "--canary-percentage", "10", "--bake", "3600")
    deploying = own.start("deploy", "application", *canary, *UNTRIED)
    until(lambda: document(own)["green"]["weight"] == 10)
    ours = niceness(os.getpid())
    assert (niceness(deploying.pid), niceness(instance(own, "green-1"))) == (max(NICENESS, ours), ours)
    back = own.json("rollback", "--method", "application", "--version", "v0.1.0", "--yes", *EMBEDDED)
    assert (back["blue"]["version"], back["blue"]["weight"], back["deployment"]["status"]) == (
        "v0.1.0", 100, "rolled-back",
    )  # fmt: skip
    _, output = deploying.communicate(timeout=UP_TIMEOUT_S)
    assert (deploying.returncode, "taken over" in output) == (1, True), output
    forth = own.json("rollback", "--method", "application", "--version", "v0.2.0", "--yes", *EMBEDDED)
    assert (forth["green"]["version"], forth["green"]["weight"], forth["deployment"]["status"]) == (
        "v0.2.0", 100, "promoted",
    )  # fmt: skip
    assert "gate" not in [entry.event for entry in noted_of(own, forth["deployment"]["id"])]
    check_audit(own)
    every_way_out_of_a_frozen_fleet_leads_to_a_working_stack(own)
    own.run("rollback", "--method", "blue-green", "--emergency")


def health_of(status: dict[str, Any], name: str) -> str:
    return next(str(daemon["health"]) for daemon in status["daemons"] if daemon["name"] == name)


def every_way_out_of_a_frozen_fleet_leads_to_a_working_stack(own: Checkout) -> None:
    """Green has all traffic and v0.2.0, also at the end."""
    frozen = instance(own, "blue-1")
    os.kill(frozen, signal.SIGSTOP)
    refused = own.run("rollback", "--method", "blue-green", "--emergency", expect=3).stderr
    assert "no instance of blue, which would get all traffic, responds" in refused
    assert "green has 100 %" in refused
    assert document(own)["green"]["weight"] == 100
    assert own.json("up", *EMBEDDED)["status"]["healthy"]
    assert instance(own, "blue-1") != frozen
    os.kill(instance(own, "blue-1"), signal.SIGSTOP)
    own.run("rollback", "--method", "blue-green", "--yes", "--force")
    assert (document(own)["blue"]["weight"], answers(own.ports()["service"])) == (100, True)
    os.kill(instance(own, "blue-1"), signal.SIGSTOP)
    own.run("rollback", "--method", "application", "--version", "v0.2.0", "--emergency", *EMBEDDED)
    assert (document(own)["green"]["weight"], answers(own.ports()["service"])) == (100, True)
    assert own.well_status()["healthy"]


def niceness(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, pid)


def instance(own: Checkout, name: str) -> int:
    """Return the process of an instance."""
    pid = Sandbox(own.home, Path(own.environment["OBSERVATORY_ROOTFS"])).supervisor.status(f"storage-{name}").pid
    assert pid
    return pid


def fail_trial(own: Checkout, version: str, message: str) -> None:
    before = document(own)
    output = own.run("deploy", "application", "--version", version, "--strategy", "blue-green", *EMBEDDED, expect=1)
    assert message in output.stderr
    assert "no fleet was changed" in output.stderr
    assert document(own) == before


def test_a_version_that_fails_its_trial_changes_nothing_and_the_next_trial_removes_a_killed_one(own: Checkout) -> None:
    processes = own.processes()
    killed = own.start("deploy", "application", "--version", "v0.4.0", "--strategy", "blue-green", *EMBEDDED)
    while not answers(own.ports()["trial"]):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    assert answers(own.ports()["trial"])
    fail_trial(own, "v0.8.0", "/v1/metrics answered 500")
    assert not answers(own.ports()["trial"])
    fail_trial(own, "v0.7.0", "its manifest says")
    until(lambda: own.processes() <= processes)  # a job of the scheduler may run meanwhile
    assert not (own.home / "releases/trial").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--version", "v9.9.9", "--strategy", "blue-green"), "not in the store"),
        (("--version", "v0.5.0", "--strategy", "blue-green"), "needs schema 99 or later"),
        (("--version", "v0.2.0", "--strategy", "rolling"), "no idle capacity"),
    ],
)
def test_what_cannot_be_deployed_is_refused(own: Checkout, arguments: tuple[str, ...], message: str) -> None:
    before = document(own)
    assert message in own.run("deploy", "application", *arguments, *EMBEDDED, expect=3).stderr
    assert document(own) == before


def test_a_dry_run_prints_the_plan_and_changes_nothing(own: Checkout) -> None:
    before = document(own)
    wanted = ("deploy", "application", "--version", "v0.2.0", "--strategy", "canary", "--dry-run")
    planned = own.json(*wanted)
    assert (planned["version"], planned["target"], planned["weights"]) == ("v0.2.0", "green", [5, 25, 50, 100])
    assert "traffic weights 5 %, 25 %, 50 %, 100 %" in own.run(*wanted).stdout
    back = own.json("rollback", "--method", "application", "--version", "v0.2.0", "--dry-run")
    assert (back["undone"], back["deployment"]["version"], back["deployment"]["gated"]) == (None, "v0.2.0", False)
    assert document(own) == before


def test_an_alert_after_the_promotion_rolls_back_if_the_setting_is_perform(own: Checkout) -> None:
    wanted = ("--version", "v0.2.0", "--strategy", "blue-green", "--bake", "0")
    promoted = own.json("deploy", "application", *wanted, *UNTRIED)["deployment"]["id"]
    own.configure(delivery={**DELIVERY, "rollback_on_alert": "perform"})
    try:
        Sandbox(own.home, Path(own.environment["OBSERVATORY_ROOTFS"])).supervisor.stop("storage-green-1")
        wait(lambda: "rolled-back" in [entry.event for entry in noted_of(own, promoted)])
        assert document(own)["blue"]["weight"] == 100
        last = own.json("report")[-1]
        assert last["outcome"] == "rolled back"
        assert "fires" in last["reason"]
        events = [entry["event"] for entry in last["entries"]]
        assert events.count("perform-rollback") == events.count("rolled-back") == 1
        status = own.well_status()  # the version that failed is stopped
        assert (health_of(status, "storage-green-1"), status["healthy"]) == ("off", True)
        evaluation = status["evaluation"]
        assert (evaluation["details"]["deployment"], evaluation["event"]) == (last["id"], "gate")
        assert "Gate at" in own.well_table()
    finally:
        own.configure(delivery=DELIVERY)


def test_all_alerts_but_outages_can_be_silenced(own: Checkout) -> None:
    wanted = ("--fleet", "green", "--duration", "30m", "--reason", "noise")
    made = own.json("silence", "create", *wanted)["id"]
    assert [each["id"] for each in own.json("silence", "list")] == [made]
    own.run("silence", "end", made)
    assert own.json("silence", "list") == []
    assert "no silence" in own.run("silence", "end", made, expect=2).stderr
    assert (
        "cannot be silenced" in own.run("silence", "create", "--alert", "StorageServiceDown", *wanted, expect=3).stderr
    )


def test_outside_the_windows_a_version_is_refused(own: Checkout) -> None:
    later = WEEKDAYS[(datetime.now(UTC).weekday() + 3) % 7]
    own.configure(delivery={**DELIVERY, "windows": [{"days": [later], "opens": "10:00", "closes": "11:00"}]})
    before = document(own)
    output = own.run("deploy", "application", "--version", "v0.2.0", "--strategy", "blue-green", *EMBEDDED, expect=3)
    assert "v0.2.0 is a minor change: no deployment window is open, the next opens" in output.stderr
    assert document(own) == before
    own.configure(delivery=DELIVERY)


def run_program(stack: Checkout, version: str, *, expect: int) -> str:
    """Run the program of docs/ci.md, and return what it prints."""
    done = subprocess.run(
        [sys.executable, str(write_program(stack.root)), "local", version],
        cwd=stack.root,
        env={**os.environ, **stack.environment},
        capture_output=True,
        text=True,
        timeout=UP_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


def test_the_release_workflow_deploys_a_version_with_its_migrations(own: Checkout) -> None:
    for file in (SOURCE / "migrations").glob(f"{LAST_MIGRATION}.*"):
        shutil.copy(file, own.root / "migrations")
    with Load(own, RATE) as load:
        done = released(own, "v0.12.0")
        assert (done["applied"], done["rollout"]["deployment"]["status"]) == ([LAST_MIGRATION], "promoted")
        assert done["backup_label"]
        assert done["rollout"]["deployment"]["tests"] == "passed"
        until(lambda: load.versions["v0.12.0"] > 0)
        assert set(own.json("up", *EMBEDDED)["summary"]) == {"same"}
    assert load.failed == []
    again = run_program(own, "v0.12.0", expect=0)
    assert "passed: " in again
    assert "failed: " not in again
    assert document(own)["revision"] == done["rollout"]["revision"]
    assert "needs schema 99" in run_program(own, "v0.5.0", expect=3)
    own.run("rollback", "--method", "blue-green", "--emergency")


def test_the_release_workflow_stops_at_a_failed_checklist(own: Checkout) -> None:
    before = document(own)
    assert own.json("release", "deploy", "v0.2.0", "--dry-run")["objections"] == []
    added = own.root / "migrations" / "500_missing.sql"
    added.write_text("-- A column.\n\nALTER TABLE missing ADD COLUMN added text;\n")
    try:
        planned = own.json("release", "deploy", "v0.2.0", "--dry-run", expect=3)
        assert planned["migrations"] == [added.name]
        [objection] = planned["objections"]
        assert f'the migrations would fail: {added.name}:3:1: relation "missing" does not exist' in objection
        assert objection in own.run("release", "deploy", "v0.2.0", *EMBEDDED, expect=3).stderr
        assert own.well_status()["schema_version"] == int(LAST_MIGRATION[:3])
    finally:
        added.unlink()
    assert document(own) == before


def test_a_running_deployment_blocks_other_changes(own: Checkout) -> None:
    wanted = ("--version", "v0.2.0", "--strategy", "canary", "--canary-percentage", str(CANARY))
    running = own.start("deploy", "application", *wanted, "--bake", "600", *UNTRIED)
    while document(own)["deployment"]["status"] != "shifting":
        assert running.poll() is None, running.communicate()
        time.sleep(0.2)
    assert set(own.json("up", *EMBEDDED)["summary"]) == {"same"}
    own.configure(fleets={"drain_seconds": 19})
    for command in (("up", *EMBEDDED), ("deploy", "database"), ("release", "deploy", "v0.2.0", *EMBEDDED)):
        assert "The deployment lock is held by" in own.run(*command, expect=3).stderr
    own.configure(fleets={})
    assert own.json("rollout", "abort")["acknowledged"]
    output = running.communicate(timeout=UP_TIMEOUT_S)[1]
    assert (running.returncode, "aborted by `observatory rollout abort`" in output) == (1, True), output


def test_rollout_commands_without_a_deployment_are_refused(own: Checkout) -> None:
    assert "no deployment is under way" in own.run("rollout", "pause", expect=3).stderr
