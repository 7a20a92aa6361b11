"""Routes, checked with Alertmanager's own tool, and inhibitions, checked on a real Alertmanager."""

from functools import partial

import pytest
import yaml

from monitoring import ALERTS, RECEIVERS, Alert, Scope, alertmanager_file, webhook_receivers
from monitoring.alertmanager import NO_RECEIVER
from observatory.nodes import Paths
from observatory.nodes.alertmanager import alertmanager
from observatory.runtime import Sandbox
from observatory.settings import LocalSettings
from tests.monitoring.conftest import Pager
from tests.support.waiting import until

pytestmark = pytest.mark.slow

ROUTES = {
    "watchdog": {"alertname": "Watchdog", "severity": "none"},
    NO_RECEIVER: {"alertname": "InfoInhibitor", "severity": "none"},
    "pagerduty,slack": {"alertname": "Any", "severity": "critical"},
    "slack,email": {"alertname": "Any", "severity": "warning"},
    "ticket": {"alertname": "Any", "severity": "info"},
    "slack": {"alertname": "Unlabelled"},
}
FILE = "/srv/etc/alertmanager.yaml"


@pytest.fixture
def configured(sandbox: Sandbox) -> Sandbox:
    sandbox.write_file(FILE, alertmanager_file(webhook_receivers("http://127.0.0.1:1", tls={})))
    return sandbox


def verify_route(sandbox: Sandbox, receivers: str, labels: dict[str, str]) -> None:
    options = ["--config.file", FILE, f"--verify.receivers={receivers}"]
    matchers = [f"{key}={value}" for key, value in labels.items()]
    sandbox.run(["/usr/bin/amtool", "config", "routes", "test", *options, *matchers])


def test_configuration_is_valid(configured: Sandbox) -> None:
    assert "SUCCESS" in configured.run(["/usr/bin/amtool", "check-config", FILE]).stdout


@pytest.mark.parametrize(("receivers", "labels"), ROUTES.items(), ids=str)
def test_route_leads_to_its_receivers(configured: Sandbox, receivers: str, labels: dict[str, str]) -> None:
    verify_route(configured, receivers, labels)


def test_every_receiver_has_a_route() -> None:
    assert {name for route in ROUTES for name in route.split(",")} == {*RECEIVERS, NO_RECEIVER}


def test_every_alert_reaches_its_receivers(configured: Sandbox) -> None:
    by_severity = {"critical": "pagerduty,slack", "warning": "slack,email", "info": "ticket"}
    for alert in ALERTS:
        receivers = {"Watchdog": "watchdog", "InfoInhibitor": NO_RECEIVER}.get(alert.name) or by_severity[
            alert.severity
        ]
        verify_route(configured, receivers, {"alertname": alert.name, **alert.labels(Scope(stack="s", runbooks=""))})


@pytest.mark.parametrize("alert", [alert for alert in ALERTS if alert.rollback], ids=lambda alert: alert.name)
def test_alert_with_rollback_reaches_the_scheduler_and_people(sandbox: Sandbox, alert: Alert) -> None:
    text = alertmanager(LocalSettings(), Paths()).files["/srv/etc/alertmanager/alertmanager.yaml"]
    sandbox.write_file(FILE, text)
    assert "SUCCESS" in sandbox.run(["/usr/bin/amtool", "check-config", FILE]).stdout
    people = {"critical": "pagerduty,slack", "warning": "slack,email"}[alert.severity]
    labels = {"alertname": alert.name, "fleet": "green", **alert.labels(Scope(stack="s", runbooks=""))}
    verify_route(sandbox, f"rollback,{people}", labels)


def test_every_time_interval_is_used() -> None:
    config = yaml.safe_load(alertmanager_file(webhook_receivers("http://127.0.0.1:1", tls={})))
    used = [name for route in config["route"]["routes"] for name in route.get("mute_time_intervals", [])]
    assert used == [interval["name"] for interval in config["time_intervals"]]


def test_every_inhibition_stays_within_its_stack() -> None:
    config = yaml.safe_load(alertmanager_file(webhook_receivers("http://127.0.0.1:1", tls={})))
    assert all("stack" in rule["equal"] for rule in config["inhibit_rules"])


def test_missing_receiver_is_rejected() -> None:
    receivers = webhook_receivers("http://127.0.0.1:1", tls={})
    del receivers["email"]
    with pytest.raises(ValueError, match="email"):
        alertmanager_file(receivers)


def alert(name: str, stack: str = "a", **labels: str) -> dict[str, str]:
    return {"alertname": name, "stack": stack, **labels}


def test_known_cause_inhibits_its_consequences_and_nothing_else(pager: Pager) -> None:
    pager.fire(
        alert("StorageDatabaseDown", severity="critical", component="database"),
        alert("StorageInstanceDown", severity="warning", component="service", fleet="blue"),
        alert("StorageServiceDown", severity="critical", component="service", fleet="green"),
        alert("StorageDiskWarning", severity="warning", component="database"),
        alert("StorageInstanceDown", stack="b", severity="warning", component="service", fleet="blue"),
        alert("StorageServiceDown", stack="b", severity="critical", component="service", fleet="green"),
        alert("InfoInhibitor", stack="c", severity="none"),
        alert("StorageCacheHitRateLow", stack="c", severity="info", component="service"),
        alert("StorageCacheHitRateLow", stack="b", severity="info", component="service"),
    )
    assert pager.inhibited() == {("StorageInstanceDown", "a"), ("StorageCacheHitRateLow", "c")}


def test_fleet_without_instances_is_one_alert(pager: Pager) -> None:
    pager.fire(
        alert("StorageServiceDown", severity="critical", component="service", fleet="blue"),
        alert("StorageInstanceDown", severity="warning", component="service", fleet="blue"),
    )
    assert pager.inhibited() == {("StorageInstanceDown", "a")}


def test_critical_alert_reaches_both_of_its_receivers(pager: Pager) -> None:
    pager.fire(alert("StorageDatabaseDown", severity="critical", component="database"))
    for receiver in ("pagerduty", "slack"):
        until(partial(pager.received, receiver), f"the notification of {receiver}")
        assert [one["labels"]["alertname"] for one in pager.received(receiver)] == ["StorageDatabaseDown"]
    assert not pager.received("email")


def test_runbook_of_an_alert_is_served(pager: Pager) -> None:
    page = pager.http.get(f"{pager.receiver}/runbooks/StorageDatabaseDown")
    assert page.status_code == 200
    assert "PostgreSQL does not answer" in page.text
