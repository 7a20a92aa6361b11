"""`observatory verify` passes on a stack that is well, and says what is wrong with one that is not."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import httpx
import psycopg

from observatory.runtime import Sandbox
from tests.stack.test_monitoring import Monitoring
from tests.support.checkout import Checkout
from tests.support.delivery import EMBEDDED
from tests.support.waiting import until

BASIC = ["daemons", "service", "fleet blue", "database", "backups", "certificates", "monitoring"]
PATIENCE_S = 600.0  # until a busy machine's daemons are all ready and scraped


def test_a_healthy_stack_passes_and_keeps_no_test_data(stack: Checkout, tmp_path: Path) -> None:
    report, deadline = tmp_path / "report.xml", time.monotonic() + PATIENCE_S
    while code := stack.exit_code("verify", "--junit", str(report)):
        assert time.monotonic() < deadline, (code, report.read_text())
    suite = ET.parse(report).getroot()  # noqa: S314 - our own
    assert [case.get("name") for case in suite] == BASIC
    with psycopg.connect(stack.output("admin_database_url"), dbname="observatory") as admin:
        marked = admin.execute("SELECT count(*) FROM llm_traces WHERE provider = 'observatory.verification'").fetchone()
    assert marked == (0,)


def test_a_comprehensive_verification_checks_both_fleets_latency_alerts_and_backup(stack: Checkout) -> None:
    parts = {"fleet green", "backup", "backup contents"}
    found = by_name(verified(stack, "--comprehensive", parts))
    assert {"fleet blue", *parts, "latency", "alerts"} <= found.keys()
    assert {found[name]["verdict"] for name in parts} == {"passed"}, found
    assert "unknown" not in {found[name]["verdict"] for name in ("latency", "alerts")}, found


def test_a_dry_run_reaches_the_parts_and_lists_the_checks(stack: Checkout) -> None:
    listed = verified(stack, "--dry-run")
    assert {check["verdict"] for check in listed["checks"]} == {"passed"}, listed
    assert listed["would_check"] == BASIC


def by_name(document: Any) -> dict[str, Any]:
    return {check["name"]: check for check in document["checks"]}


def verified(stack: Checkout, option: str, names: Collection[str] = ()) -> Any:
    """Return the document of `verify`, once some or all of its checks pass: a busy machine may miss an answer."""
    documents: list[Any] = []

    def passed() -> bool:
        process = stack.start("verify", option, "--output", "json")
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode in (0, 1), err
        documents.append(json.loads(out))
        found = by_name(documents[-1])
        return all(found[name]["verdict"] == "passed" for name in names or found)

    with contextlib.suppress(TimeoutError):  # the document says what failed
        until(passed, "the checks to pass", timeout_s=PATIENCE_S)
    return documents[-1]


def test_removed_and_edited_files_are_found_and_repaired(stack: Checkout) -> None:
    """Prometheus without its rules is ready and scrapes; so is pgBouncer with another configuration."""
    sandbox = Sandbox(stack.home, Path(stack.environment["OBSERVATORY_ROOTFS"]))
    rules, pooler = stack.home / "etc/prometheus/rules.yaml", stack.home / "etc/pgbouncer/pgbouncer.ini"
    declared = rules.read_text(), pooler.read_text()
    rules.unlink()
    pooler.write_text(declared[1].replace("pool_mode = transaction", "pool_mode = session"))
    pooler.chmod(0o644)
    sandbox.supervisor.restart("prometheus")

    until(lambda: rules_of_prometheus(stack) == 0, "Prometheus without rules", timeout_s=PATIENCE_S)
    until(lambda: "Prometheus has 0 of" in monitoring(stack)["detail"], "verify to say so", timeout_s=PATIENCE_S)
    plan = stack.json("preview", *EMBEDDED)
    assert changed(plan) == {"prometheus", "pgbouncer"}
    assert "prometheus: /srv/etc/prometheus/rules.yaml is missing" in plan["notes"]
    assert "pgbouncer: /srv/etc/pgbouncer/pgbouncer.ini was changed" in plan["notes"]
    assert changed(refresh(stack)) == {"prometheus", "pgbouncer"}

    assert changed(stack.json("up", *EMBEDDED)) == {"prometheus", "pgbouncer"}
    assert (rules.read_text(), pooler.read_text(), pooler.stat().st_mode & 0o777) == (*declared, 0o600)
    until(lambda: reaches_every_target(stack), "Prometheus to reach every target", timeout_s=PATIENCE_S)
    until(lambda: monitoring(stack)["verdict"] == "passed", "monitoring to pass", timeout_s=PATIENCE_S)
    assert changed(stack.json("preview", *EMBEDDED)) == set()


def rules_of_prometheus(stack: Checkout) -> int | None:
    """Return how many groups of rules Prometheus has; None while it does not answer."""
    try:
        return len(json.loads(Monitoring(stack).get("prometheus", "/api/v1/rules"))["data"]["groups"])
    except httpx.HTTPError:
        return None


def reaches_every_target(stack: Checkout) -> bool:
    try:
        found = json.loads(Monitoring(stack).get("prometheus", "/api/v1/targets?state=active"))
    except httpx.HTTPError:
        return False
    return {each["health"] for each in found["data"]["activeTargets"]} == {"up"}


def monitoring(stack: Checkout) -> dict[str, str]:
    """Return the result of the check of the monitoring."""
    process = stack.start("verify", "--output", "json")
    checks = json.loads(process.communicate(timeout=600)[0])["checks"]
    return dict(next(check for check in checks if check["name"] == "monitoring"))


def changed(result: dict[str, Any]) -> set[str]:
    return {step["urn"].rpartition("::")[2] for step in result["steps"] if step["operation"] != "same"}


REFRESH = """\
import json, pathlib
from observatory.engines import embedded
from observatory.platforms import open_platform
from observatory.platforms.stack_state import engine_options
from observatory.workspace import Workspace
result = embedded.refresh(engine_options(open_platform(Workspace(root=pathlib.Path.cwd(), stack="local"))))
print(json.dumps({"steps": [{"urn": step.urn, "operation": step.operation} for step in result.steps]}))
"""


def refresh(stack: Checkout) -> dict[str, Any]:
    environment = {**os.environ, **stack.environment}
    command = [sys.executable, "-c", REFRESH]
    done = subprocess.run(command, cwd=stack.root, env=environment, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def test_a_missing_instance_is_reported_by_the_check_that_uses_it(stack: Checkout) -> None:
    sandbox = Sandbox(stack.home, Path(stack.environment["OBSERVATORY_ROOTFS"]))
    sandbox.supervisor.stop("storage-green-1")
    try:
        found = {check["name"]: check for check in stack.json("verify", "--target", "green", expect=1)["checks"]}
    finally:
        sandbox.supervisor.start("storage-green-1")
    assert found["daemons"]["verdict"] == "failed"
    assert "storage-green-1" in found["daemons"]["detail"]
    assert (found["fleet green"]["verdict"], found["database"]["verdict"]) == ("failed", "passed")
    until(stack.is_well, "the stack to be well", timeout_s=PATIENCE_S)


def test_a_stack_that_is_not_up_is_reported(checkout: Checkout) -> None:
    assert "is not up" in checkout.run("verify", expect=3).stderr
