"""Routes, checked with Alertmanager's own tool; inhibitions and time intervals, checked on a real Alertmanager."""

import json
import shlex
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

import pytest
import yaml

from monitoring import ALERTS, RECEIVERS, Scope, alertmanager_file, webhook_receivers
from monitoring.alertmanager import NO_RECEIVER, MaintenanceWindow, Receiver
from monitoring.inhibitions import INHIBITIONS, Inhibition, inhibitions, label_names
from monitoring.model import Firing
from observatory.nodes import Paths
from observatory.nodes.alertmanager import alertmanager, receiver_secrets
from observatory.nodes.web import client_config
from observatory.platforms.alertmanager import Alertmanager
from observatory.runtime import Sandbox
from observatory.settings import LocalSettings
from observatory.settings.windows import is_known_in_sandbox
from tests.monitoring.conftest import Pager
from tests.support.waiting import until

pytestmark = pytest.mark.slow

FILE = "/srv/etc/alertmanager.yaml"
SCOPE = Scope(stack="s", runbooks="")
BY_NAME = {"Watchdog": "watchdog", "InfoInhibitor": NO_RECEIVER}
BY_SEVERITY = {"critical": "pagerduty,slack", "warning": "slack,email", "info": "ticket"}
OTHER_SEVERITIES = ("none", "page", "Critical", "")  # an alert with a wrong severity still reaches people
EVERY_DAY = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
Cell = tuple[str, dict[str, str]]


def local_receivers(*, rollback: bool = False) -> dict[Receiver, dict[str, Any]]:
    receivers = webhook_receivers("http://127.0.0.1:1", tls={})
    if rollback:
        receivers["rollback"] = {"webhook_configs": [{"url": "http://127.0.0.1:1/alerts"}]}
    return receivers


def expected(labels: dict[str, str], *, rollback: bool = False) -> str:
    """Return the receivers of an alert as the matrix of routes names them."""
    if labels["alertname"] in BY_NAME:
        return BY_NAME[labels["alertname"]]
    people = BY_SEVERITY.get(labels.get("severity", ""))
    act = ["rollback"] if rollback and labels.get("rollback") == "true" else []
    return ",".join([*act, *([people] if people else [] if act else ["slack"])])


def matrix() -> Iterable[dict[str, str]]:
    """Yield the labels of every alert of the registry, and of every severity with and without a rollback."""
    for alert in ALERTS:
        yield {"alertname": alert.name, "fleet": "green", **alert.labels(SCOPE)}
    for severity, rollback in product((*BY_SEVERITY, *OTHER_SEVERITIES), ("true", "false", "")):
        yield {"alertname": "Any", "stack": "s", "severity": severity, "rollback": rollback}


def wrong_cells(sandbox: Sandbox, text: str, cells: Iterable[Cell]) -> list[str]:
    """Return what amtool says about each cell whose alert does not reach exactly its receivers."""
    sandbox.write_file(FILE, text)
    lines = []
    for receivers, labels in cells:
        matchers = [f"{key}={value}" for key, value in labels.items()]
        options = ["--config.file", FILE, f"--verify.receivers={receivers}", *matchers]
        lines.append(f"amtool config routes test {shlex.join(options)} 2>&1 || echo WRONG {shlex.quote(str(labels))}")
    done = sandbox.run(["/bin/sh", "-c", "\n".join(lines)])
    return [line for line in done.stdout.splitlines() if line.startswith("WRONG")]


@pytest.mark.parametrize("rollback", [False, True], ids=["without rollback", "with rollback"])
def test_every_cell_of_the_routing_matrix(sandbox: Sandbox, *, rollback: bool) -> None:
    window = MaintenanceWindow(days=("sun",), opens="22:00", closes="02:00", timezone="Europe/Berlin")
    cells = [(expected(labels, rollback=rollback), labels) for labels in matrix()]
    for maintenance in ((), (window,)):
        text = alertmanager_file(local_receivers(rollback=rollback), maintenance=maintenance)
        assert wrong_cells(sandbox, text, cells) == []
        assert "SUCCESS" in sandbox.run(["/usr/bin/amtool", "check-config", FILE]).stdout
    reached = {name for receivers, _ in cells for name in receivers.split(",")}
    assert reached == {*RECEIVERS, NO_RECEIVER, *(["rollback"] if rollback else [])}


def test_a_wrong_route_is_noticed(sandbox: Sandbox) -> None:
    text = alertmanager_file(local_receivers()).replace('severity="warning"', 'severity="warn"')
    cells = [(expected(labels), labels) for labels in matrix()]
    wrong = wrong_cells(sandbox, text, cells)
    assert len(wrong) == sum(labels["severity"] == "warning" for _, labels in cells)


def test_the_configuration_of_a_stack_is_valid_and_rolls_back(sandbox: Sandbox) -> None:
    unit = alertmanager(LocalSettings(), Paths())
    for path, text in unit.files.items():
        sandbox.write_file(path, text)
    (file,) = [path for path in unit.files if path.endswith("alertmanager.yaml")]
    assert "SUCCESS" in sandbox.run(["/usr/bin/amtool", "check-config", file]).stdout
    cells = [(expected(labels, rollback=True), labels) for labels in matrix()]
    assert any("rollback" in receivers for receivers, _ in cells)
    assert wrong_cells(sandbox, unit.files[file], cells) == []


CONFIGURED = """{
    "maintenance": [{"days": ["sat"], "opens": "22:00", "closes": "04:00", "timezone": "Europe/Berlin"}],
    "receivers": {
        "slack": {"channel": "#storage", "webhook_file": "secrets/slack"},
        "pagerduty": {"routing_key_file": "secrets/pagerduty"},
        "email": {"to": "a@b.example", "sender": "c@d.example", "smarthost": "mx.example:587", "username": "u",
                  "password_file": "secrets/mail"},
        "ticket": {"url_file": "secrets/ticket"},
        "heartbeat": {"url_file": "secrets/heartbeat"}
    }
}"""


def test_configured_receivers_get_alerts_beside_the_stacks_own_and_hold_no_secret(sandbox: Sandbox) -> None:
    settings = LocalSettings.model_validate_json(CONFIGURED)
    unit = alertmanager(settings, Paths())
    for path, text in unit.files.items():
        sandbox.write_file(path, text)
    (file,) = [path for path in unit.files if path.endswith("alertmanager.yaml")]
    assert "SUCCESS" in sandbox.run(["/usr/bin/amtool", "check-config", file]).stdout
    config = yaml.safe_load(unit.files[file])
    kinds = {each["name"]: {kind for kind in each if kind != "name"} for each in config["receivers"]}
    assert kinds["slack"] == {"webhook_configs", "slack_configs"}
    assert kinds["pagerduty"] == {"webhook_configs", "pagerduty_configs"}
    assert kinds["email"] == {"webhook_configs", "email_configs"}
    by_name = {each["name"]: each for each in config["receivers"]}
    assert [len(by_name[name]["webhook_configs"]) for name in ("ticket", "watchdog", "slack")] == [2, 2, 1]
    secrets = receiver_secrets(settings, Paths())
    assert all(path in unit.files[file] for path in secrets)
    assert {str(source) for source, _ in secrets.values()} == {
        *("secrets/slack", "secrets/pagerduty", "secrets/mail", "secrets/ticket", "secrets/heartbeat"),
    }
    assert receiver_secrets(LocalSettings(), Paths()) == {}


def test_every_time_interval_is_used_and_none_mutes_a_page() -> None:
    window = MaintenanceWindow(days=("sun",), opens="22:00", closes="02:00")
    config = yaml.safe_load(alertmanager_file(local_receivers(rollback=True), maintenance=[window]))
    routes = config["route"]["routes"]
    used = {name for route in routes for name in route.get("mute_time_intervals", [])}
    assert used == {interval["name"] for interval in config["time_intervals"]}
    for route in routes:
        if route["receiver"] in ("watchdog", "rollback") or route["matchers"] == ['severity="critical"']:
            assert "mute_time_intervals" not in route


@pytest.mark.parametrize(
    ("opens", "closes", "times"),
    [
        ("02:00", "04:00", [("saturday", "02:00", "04:00")]),
        ("22:00", "02:00", [("saturday", "22:00", "24:00"), ("sunday", "00:00", "02:00")]),
        ("22:00", "00:00", [("saturday", "22:00", "24:00")]),
        ("00:00", "00:00", [("saturday", "00:00", "24:00")]),
        ("06:00", "06:00", [("saturday", "06:00", "24:00"), ("sunday", "00:00", "06:00")]),
    ],
)
def test_a_window_ends_on_the_next_day(opens: str, closes: str, times: list[tuple[str, str, str]]) -> None:
    found = MaintenanceWindow(days=("sat",), opens=opens, closes=closes).intervals()
    assert [(*each["weekdays"], *each["times"][0].values()) for each in found] == times


def test_alertmanager_finds_every_time_zone_that_the_settings_accept(rootfs: Path) -> None:
    accepted = sorted(zone for zone in available_timezones() if is_known_in_sandbox(zone))
    assert {"UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"} <= set(accepted)
    assert [zone for zone in accepted if not (rootfs / "usr/share/zoneinfo" / zone).is_file()] == []


@pytest.mark.parametrize("zone", ["US/Eastern", "Asia/Calcutta", "CET", "Japan"])
def test_a_window_in_a_zone_that_alertmanager_does_not_know_is_refused(zone: str) -> None:
    if zone not in available_timezones():
        pytest.skip("this machine does not know the zone either")
    window = {"days": ["sun"], "opens": "02:00", "closes": "04:00", "timezone": zone}
    with pytest.raises(ValueError, match=f"{zone}, which Alertmanager does not know"):
        LocalSettings.model_validate({"maintenance": [window]})


def test_missing_receiver_is_rejected() -> None:
    receivers = local_receivers()
    receivers["email"] = {}
    with pytest.raises(ValueError, match="email"):
        alertmanager_file(receivers)
    del receivers["email"]
    with pytest.raises(ValueError, match="email"):
        alertmanager_file(receivers)


def with_equal(*labels: str) -> Inhibition:
    return replace(INHIBITIONS[1], equal=labels)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (with_equal("stack", "server"), r"StorageServiceDown lacks the label \['server'\]"),  # the cause lacks it
        (with_equal("stack", "zone"), "lacks the label"),
        (with_equal("fleet"), "expected stack"),
        (with_equal("stack", "severity"), "expected stack"),
        (replace(INHIBITIONS[1], source=('alertname="StorageDatabaseDown"',)), r"StorageDatabaseDown lacks .*fleet"),
        (replace(INHIBITIONS[1], targets=('alertname="StorageGone"',)), "no alert is its consequence"),
        (replace(INHIBITIONS[1], source=('alertname="StorageGone"',)), "no alert is its cause"),
        (replace(INHIBITIONS[0], targets=('component="service"',)), "critical and must page"),
        (replace(INHIBITIONS[0], targets=("component=service",)), "expected a name, an operator"),
    ],
)
def test_an_inhibition_that_would_inhibit_nothing_or_too_much_is_refused(rule: Inhibition, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        inhibitions([rule])


def test_labels_of_an_alert_are_those_of_all_its_firings() -> None:
    (server,) = [alert for alert in ALERTS if alert.name == "StorageInstanceDown"]
    assert label_names(server) >= {"stack", "fleet", "server"}
    without = Firing(at="1m", labels={"fleet": "blue"}, description="")
    fewer = replace(server, scenarios=(*server.scenarios, replace(server.scenarios[0], fires=(without,))))
    assert "server" not in label_names(fewer)


LABELS = {alert.name: alert.labels(SCOPE) for alert in ALERTS}


def alert(name: str, stack: str = "a", /, **labels: str) -> dict[str, str]:
    return {**LABELS.get(name, {}), "alertname": name, "stack": stack, **labels}


def escalated(name: str, stack: str = "a", /, **labels: str) -> dict[str, str]:
    return alert("StorageWarningUnattended", stack, escalated=name, **labels)


def test_known_cause_inhibits_its_consequences_and_nothing_else(pager: Pager) -> None:
    pager.fire(
        alert("StorageDatabaseDown", instance="i"),
        alert("StorageInstanceDown", fleet="blue", server="blue-1"),
        escalated("StorageInstanceDown", fleet="blue", server="blue-1"),
        escalated("StorageCertificateExpiring"),
        alert("StorageServiceDown", fleet="green"),
        alert("StorageCertificateExpiring", name="n"),
        alert("StorageInstanceDown", "b", fleet="blue"),
        escalated("StorageInstanceDown", "b", fleet="blue"),
        alert("InfoInhibitor", "c"),
        alert("Any", "c", severity="info", component="service"),
        alert("Any", "b", severity="info", component="service"),
    )
    causes = {("StorageInstanceDown", "a"), ("StorageWarningUnattended", "a"), ("Any", "c")}
    until(lambda: pager.inhibited() == causes, "the inhibited alerts")
    assert len(pager.inhibited_alerts()) == 3  # one of the two escalations of stack a


def test_fleet_without_instances_is_one_alert(pager: Pager) -> None:
    pager.fire(
        alert("StorageServiceDown", fleet="blue"),
        alert("StorageInstanceDown", fleet="blue"),
        alert("StorageInstanceDown", fleet="green"),
        escalated("StorageInstanceDown", fleet="green"),
        alert("StorageErrorBudgetFastBurn", fleet="blue"),
        alert("StorageErrorBudgetSlowBurn", fleet="blue"),
        alert("StorageErrorBudgetSlowBurn", fleet="green"),
    )
    slow = [("StorageErrorBudgetSlowBurn", "blue"), ("StorageInstanceDown", "blue")]
    until(lambda: pager.inhibited_by("fleet") == slow, "the inhibited alerts")


def test_a_full_disk_is_one_alert_for_each_file_system(pager: Pager) -> None:
    pager.fire(
        alert("StorageDiskCritical", instance="i", mountpoint="/srv"),
        alert("StorageDiskWarning", instance="i", mountpoint="/srv"),
        alert("StorageDiskFullIn4Days", instance="i", mountpoint="/srv"),
        escalated("StorageDiskWarning", instance="i", mountpoint="/srv"),
        alert("StorageDiskWarning", instance="i", mountpoint="/boot"),
        escalated("StorageDiskWarning", instance="i", mountpoint="/boot"),
    )
    names = ("StorageDiskFullIn4Days", "StorageDiskWarning", "StorageWarningUnattended")
    until(lambda: pager.inhibited_by("mountpoint") == [(name, "/srv") for name in names], "the inhibited alerts")


def test_critical_alert_reaches_both_of_its_receivers(pager: Pager) -> None:
    pager.fire(alert("StorageDatabaseDown"))
    for receiver in ("pagerduty", "slack"):
        until(partial(pager.received, receiver), f"the notification of {receiver}")
        assert [one["labels"]["alertname"] for one in pager.received(receiver)] == ["StorageDatabaseDown"]
    assert not pager.received("email")


def test_each_unattended_warning_is_a_page_of_its_own(pager: Pager) -> None:
    pager.fire(*(escalated(name, fleet="blue") for name in ("StorageInstanceDown", "StorageWriteLatencyHigh")))
    until(lambda: len(pager.received("pagerduty")) == 2, "both pages")
    groups = pager.http.get(f"{pager.alertmanager}/api/v2/alerts/groups").raise_for_status().json()
    paged = [each["labels"] for each in groups if each["receiver"]["name"] == "pagerduty"]
    assert sorted(each["escalated"] for each in paged) == ["StorageInstanceDown", "StorageWriteLatencyHigh"]


def test_a_maintenance_window_mutes_warnings_and_their_escalation_and_no_page(pager: Pager) -> None:
    open_now = MaintenanceWindow(days=EVERY_DAY, opens="00:00", closes="00:00", timezone="Europe/Berlin")
    receivers = webhook_receivers(pager.receiver, tls=client_config(Paths()))
    pager.configure(alertmanager_file(receivers, maintenance=[open_now]))
    pager.fire(
        alert("StorageDatabaseDown"),
        alert("StorageConfigReloadFailed", job="j"),
        escalated("StorageConfigReloadFailed"),
    )
    until(partial(pager.received, "pagerduty"), "the page")
    muted = {("StorageConfigReloadFailed", "maintenance"), ("StorageWarningUnattended", "maintenance")}
    until(lambda: pager.muted() == muted, "the muted alerts")
    shown = Alertmanager(url=pager.alertmanager, stack="a", client=pager.client).muted_alerts()
    assert {each["alertname"] for each in shown} == {name for name, _ in muted}
    for receiver in ("pagerduty", "slack", "email"):
        names = {one["labels"]["alertname"] for one in pager.received(receiver)}
        assert names <= {"StorageDatabaseDown"}, json.dumps(pager.received(receiver))
    pager.configure(alertmanager_file(receivers))
    until(partial(pager.received, "email"), "the warning after the window")


def test_runbook_of_an_alert_is_served(pager: Pager) -> None:
    page = pager.http.get(f"{pager.receiver}/runbooks/StorageDatabaseDown")
    assert page.status_code == 200
    assert "PostgreSQL does not answer" in page.text
