"""A stack of the previous release continues under the current code."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.checkout import SOURCE, Checkout, jobs_at_another_time
from tests.support.delivery import EMBEDDED, document, until
from tests.support.releases import variant
from tests.support.upgrades import has_commit, recorded_releases

PREVIOUS = recorded_releases()[-1]
DELIVERY = {"bake_seconds": 3, "gates": {"minimum_requests": 1, "interval_s": 1}}
AS_ROOT = os.geteuid() == 0
VERSIONS = ("v0.2.0", "v0.3.0")
JOBS = ("backup_full", "backup_differential", "log_rotation")  # of each release

pytestmark = pytest.mark.skipif(
    not has_commit(PREVIOUS.commit),
    reason=f"needs commit {PREVIOUS.commit[:12]}, which this clone lacks: git fetch --unshallow",
)


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[Checkout]:
    """A stack that the previous release brought up and deployed a version to; the files are the current ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OBSERVATORY_ROOTFS", raising=False)  # the previous release's stack has its own
        checkout = PREVIOUS.check_out(tmp_path_factory.mktemp("upgrade") / "checkout")
        PREVIOUS.lend_rootfs(checkout, rootfs)
        schedule = jobs_at_another_time(datetime.now(UTC))
        checkout.configure(delivery=DELIVERY, schedule={name: schedule[name] for name in JOBS})
        try:
            checkout.run("up", *EMBEDDED)
            first = checkout.root / ".observatory/releases/v0.1.0.tar.gz"
            key = (checkout.root / ".observatory/signing-key.pem").read_text()
            for version in VERSIONS:
                checkout.run("release", "add", str(variant(first, version, checkout.root / "made", key=key)))
            deploy(checkout, "v0.2.0")
            PREVIOUS.upgrade(checkout)
            yield checkout
        finally:
            checkout.kill_all()


def deploy(checkout: Checkout, version: str, expect: int = 0) -> str:
    command = ("deploy", "application", "--version", version, "--strategy", "blue-green", *EMBEDDED)
    return checkout.run(*command, expect=expect).stderr


def changed(result: dict[str, Any]) -> set[str]:
    return {step["urn"].rpartition("::")[2] for step in result["steps"] if step["operation"] != "same"}


# Before `up`, the daemons of monitoring speak HTTP where the current code expects TLS; no watcher, guard and console
# runs.
UNREADY_BEFORE = {
    *("prometheus", "alertmanager", "alert-receiver", "request-metrics", "collector"),
    *("scheduler", "watcher", "guard", "console"),
    *("node-exporter", "postgres-exporter", "pgbouncer-exporter", "pgbackrest-exporter", "redis-exporter"),
}


def processes(status: dict[str, Any], *, unready: Collection[str] = ()) -> dict[str, int]:
    """Return the process of each daemon, all of them ready but those of `unready`."""
    daemons = status["daemons"]
    assert unready_in(status) <= set(unready)
    return {daemon["name"]: daemon["pid"] for daemon in daemons}


def unready_in(status: dict[str, Any]) -> set[str]:
    return {daemon["name"] for daemon in status["daemons"] if daemon["health"] != "ready"}


@pytest.fixture(scope="module")
def before(upgraded: Checkout) -> dict[str, int]:
    """The daemons before `up`. On a busy machine one may not answer a single probe in time."""
    found: dict[str, Any] = {}

    def others_are_ready() -> bool:
        found.update(upgraded.json("status", expect=1))
        return unready_in(found) <= UNREADY_BEFORE

    until(others_are_ready)
    return processes(found, unready=UNREADY_BEFORE)


def test_before_up_the_stack_can_be_read_and_rolled_back(upgraded: Checkout, before: dict[str, int]) -> None:
    assert before
    assert upgraded.output("service_url").startswith("https://")
    assert upgraded.json("scheduler", "run", "log-rotation")["result"] == "succeeded"
    upgraded.run("rollback", "--method", "blue-green", "--emergency", "--dry-run")
    assert "observatory up" in deploy(upgraded, "v0.3.0", expect=3)


def test_up_after_an_upgrade_changes_what_the_changelog_says(upgraded: Checkout, before: dict[str, int]) -> None:
    plan = upgraded.json("preview", *EMBEDDED)
    expected = PREVIOUS.changed | PREVIOUS.created | {"stanza"}  # which lacks repository 2
    assert changed(plan) == expected
    result = upgraded.json("up", *EMBEDDED)
    done = changed(result)
    # The files of root's stack change their owner: a restarted daemon that is not ready yet counts as a change.
    assert done >= expected if AS_ROOT else done == expected
    after = processes(result["status"])
    restarted = {name for name, pid in after.items() if pid != before[name]}
    assert restarted == set(after) if AS_ROOT else restarted <= PREVIOUS.changed | PREVIOUS.created
    assert after["scheduler"] != before["scheduler"]  # its process would run the previous release's code
    again = upgraded.json("up", *EMBEDDED)
    assert set(again["summary"]) == {"same"}
    # The fleets above are ready and still run a service of the previous release.
    newest = max(int(file.name[:3]) for file in (SOURCE / "migrations").glob("*.sql"))
    assert again["status"]["schema_version"] == newest
    manifest = json.loads((upgraded.root / ".observatory/releases/v0.2.0.json").read_text())
    assert manifest["schema_max"] < newest


def test_an_alert_reaches_the_code_that_rolls_back(upgraded: Checkout) -> None:
    token = (upgraded.home / "etc/rollback-webhook/token").read_text()
    labels = {"stack": "local", "rollback": "true", "fleet": "green", "alertname": "StorageErrorBudgetFastBurn"}
    answer = httpx.post(
        f"https://127.0.0.1:{upgraded.ports()['rollback_webhook']}/alerts",
        headers={"Authorization": f"Bearer {token}"},
        json={"alerts": [{"status": "firing", "labels": labels}]},
        timeout=60,
        verify=upgraded.trusted(),
    )
    assert answer.status_code == 200, answer.text


def test_deployments_and_rollbacks_continue(upgraded: Checkout) -> None:
    assert document(upgraded)["green"]["version"] == "v0.2.0"
    deploy(upgraded, "v0.3.0")
    assert (document(upgraded)["blue"]["version"], document(upgraded)["blue"]["weight"]) == ("v0.3.0", 100)
    upgraded.run("rollback", "--method", "blue-green", "--yes", *EMBEDDED)
    assert (document(upgraded)["green"]["version"], document(upgraded)["green"]["weight"]) == ("v0.2.0", 100)
    assert len(upgraded.json("report")) == 2


def test_down_leaves_nothing(upgraded: Checkout) -> None:
    upgraded.run("down", "--yes", *EMBEDDED)
    assert not upgraded.home.exists()
    assert upgraded.processes() == set()
    left = {file.name for file in (upgraded.root / ".observatory").rglob("local*") if file.is_file()}
    assert left == {"local.journal.jsonl"}  # which outlives the data
