"""The rule file is valid, every scenario holds, and every alert has its labels and texts."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from monitoring import ALERTS, JOBS, Alert, Scenario, Scope, Step, Thresholds, rule_file, rule_tests, runbook_pages
from monitoring.__main__ import DIRECTORY, INDEX
from monitoring.alerts.availability import DATABASE_DOWN
from monitoring.index import alert_index
from monitoring.model import CATEGORIES, dashboard_uid
from observatory.nodes import Paths
from observatory.nodes.daemons import scrapes
from observatory.nodes.prometheus import prometheus, thresholds
from observatory.runtime import Sandbox
from observatory.settings import Alerts, FleetName, LocalSettings, Schedule
from tests.support.certificates import sandbox_certificate

pytestmark = pytest.mark.slow

ROLLS_BACK = {"StorageServiceDown", "StorageInstanceDown", "StorageErrorBudgetFastBurn"}
SCOPE = Scope(stack="s1", runbooks="http://runbooks", dashboards="http://dashboards")


def test_every_scenario_holds(sandbox: Sandbox) -> None:
    files, tests = rule_tests()
    for name, text in files.items():
        sandbox.write_file(f"/srv/etc/{name}", text)
    done = sandbox.run(["/usr/bin/promtool", "test", "rules", *(f"/srv/etc/{name}" for name in tests)], check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_of_a_stack_are_valid(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox_certificate(sandbox, tmp_path)  # promtool checks that the file exists
    instances: dict[FleetName, tuple[int, ...]] = {"blue": (18100,), "green": (18200,)}
    unit = prometheus(LocalSettings(), Paths(), stack="local", instances=instances, scrapes=scrapes("local"))
    for path, content in unit.files.items():
        sandbox.write_file(path, content)
    done = sandbox.run(
        ["/usr/bin/promtool", "check", "config", "--lint=all", "--lint-fatal", "/srv/etc/prometheus/prometheus.yaml"],
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_selector_names_its_stack() -> None:
    document = yaml.safe_load(rule_file(SCOPE))
    for rule in (rule for group in document["groups"] for rule in group["rules"]):
        selectors = re.findall(r"[a-zA-Z_:]+\{[^}]*\}", rule["expr"])
        assert all('stack="s1"' in selector for selector in selectors), rule
        assert selectors or rule["alert"] == "Watchdog"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_alert_has_its_labels_and_texts(alert: Alert) -> None:
    labels, annotations = alert.labels(SCOPE), alert.annotations(SCOPE)
    assert {"severity", "component", "category", "stack"} <= labels.keys()
    assert labels.get("rollback") == ("true" if alert.name in ROLLS_BACK else None)
    assert "$value" in annotations["description"]
    assert annotations["runbook_url"] == f"http://runbooks/{alert.name}"
    assert annotations["dashboard_url"] == f"http://dashboards/{dashboard_uid(alert.dashboard)}"


def test_alerts_without_dashboards_have_no_link() -> None:
    assert "dashboard_url" not in DATABASE_DOWN.annotations(replace(SCOPE, dashboards=None))


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_part_of_a_runbook_has_content(alert: Alert) -> None:
    runbook = alert.runbook
    assert all(text.endswith(".") for text in (runbook.meaning, runbook.impact, runbook.escalation))
    assert runbook.diagnosis
    assert runbook.remedy
    assert all(step.text for step in (*runbook.diagnosis, *runbook.remedy))


def test_commands_get_the_values_of_labels() -> None:
    step = Step("Restart it.", ("observatory logs storage-{fleet}-1", "curl -d '{\"pause\": null}'"))
    assert step.placeholders == {"fleet"}
    assert step.filled({"fleet": "blue"}) == ("observatory logs storage-blue-1", "curl -d '{\"pause\": null}'")


@pytest.mark.parametrize("value", ["a b", "$(id)", "`id`", "a;b", "a\nb", "", "a'b", 'a"b', "a|b", "*", "~"])
def test_value_of_a_label_is_never_shell(value: str) -> None:
    with pytest.raises(ValueError, match="plain word"):
        Step("Look.", ("echo {fleet}",)).filled({"fleet": value})


def test_command_with_a_label_that_the_alert_lacks_is_rejected() -> None:
    with pytest.raises(ValueError, match="'fleet'"):
        Step("Look.", ("echo {fleet}",)).filled({"stack": "s1"})
    runbook = replace(DATABASE_DOWN.runbook, remedy=(Step("Look.", ("echo {fleet}",)),))
    with pytest.raises(ValueError, match=r"StorageDatabaseDown: .* labels \['fleet'\]"):
        replace(DATABASE_DOWN, runbook=runbook)


def test_names_are_unique() -> None:
    assert max(Counter(alert.name for alert in ALERTS).values()) == 1


def test_every_category_has_the_promised_number_of_alerts() -> None:
    promised = {
        "availability": 7,
        "connection-pool": 4,
        "query-performance": 3,
        "application-performance": 5,
        "database-resources": 5,
        "cache": 3,
        "data-integrity": 3,
        "timescaledb": 3,
        "backup-and-recovery": 2,
        "capacity": 2,
        "security": 2,
    }
    counted = Counter(alert.category for alert in ALERTS)
    assert {category: counted[category] for category in CATEGORIES if category != "platform"} == promised
    assert sum(promised.values()) == 39


def test_a_prediction_has_a_second_condition() -> None:
    predicting = [alert for alert in ALERTS if "predict_linear" in alert.expression(SCOPE)]
    assert [alert.name for alert in predicting] == ["StorageDiskFullIn4Days"]
    assert re.search(r"< 0\.4\b", predicting[0].expression(SCOPE))


def test_the_index_in_the_repository_is_up_to_date() -> None:
    """`python -m monitoring` writes it."""
    assert INDEX.read_text() == alert_index()


def test_each_category_is_one_group() -> None:
    names = [group["name"] for group in yaml.safe_load(rule_file(SCOPE))["groups"]]
    assert len(names) == len(set(names))


def test_every_absent_job_fires_an_alert() -> None:
    rules = rule_file(SCOPE)
    for job in JOBS:
        assert f'absent(up{{stack="s1",job="{job.name}"}})' in rules


def test_alert_without_a_firing_scenario_is_rejected() -> None:
    quiet = Scenario(name="nothing", series={}, quiet=("1m",))
    with pytest.raises(ValueError, match="StorageDatabaseDown: no scenario in which it fires"):
        replace(DATABASE_DOWN, scenarios=(quiet,))


@pytest.mark.parametrize("name", ["storage down", "../secrets", "", "storageDown"])
def test_name_that_is_not_camel_case_is_rejected(name: str) -> None:
    with pytest.raises(ValueError, match="CamelCase"):
        replace(DATABASE_DOWN, name=name)


def test_runbooks_in_the_repository_are_up_to_date() -> None:
    """`python -m monitoring` writes them."""
    assert {file.stem: file.read_text() for file in DIRECTORY.glob("*.md")} == runbook_pages()


def test_settings_have_a_threshold_each_with_the_same_default() -> None:
    assert thresholds(LocalSettings()) == Thresholds()


def test_a_threshold_of_a_stack_is_in_its_rules() -> None:
    settings = LocalSettings(alerts=Alerts(write_latency_seconds=0.25, auth_failures=3))
    unit = prometheus(settings, Paths(), stack="local", instances={}, scrapes=scrapes("local"))
    (rules,) = (text for path, text in unit.files.items() if path.endswith("/rules.yaml"))
    written = {
        rule["alert"]: rule["expr"]
        for group in yaml.safe_load(rules)["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert "> 0.25\n" in written["StorageWriteLatencyHigh"]
    assert written["StorageAuthFailures"].endswith("> 3")


def test_the_ages_of_backups_and_drills_follow_the_schedule() -> None:
    schedule = Schedule(backup_full="0 1 * * sun", backup_differential="0 1 * * wed", restore_drill="0 2 1 * *")
    scope = replace(SCOPE, thresholds=thresholds(LocalSettings(schedule=schedule)))
    written = {alert.name: alert.expression(scope) for alert in ALERTS}
    assert "[1m])) > 352800" in written["StorageBackupStale"]  # four days and two hours
    assert "has no backup of the last 98 hours" in written["StorageBackupStale"]
    assert f"> {32 * 86_400} or" in written["StorageRestoreDrillStale"]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"disk_critical_percent": 0}, "greater than or equal to 1"),
        ({"pool_wait_seconds": 10}, "less than or equal to 9"),
        ({"idle_in_transaction_seconds": 300}, "less than or equal to 290"),
        ({"write_latency_seconds": 11}, "less than or equal to 5"),
        ({"disk_critical_percent": 30}, "expected more than disk_critical_percent"),
        ({"disk_warning": 30}, "Extra inputs"),
    ],
)
def test_a_threshold_out_of_its_range_is_refused(changed: dict[str, int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Alerts.model_validate(changed)
