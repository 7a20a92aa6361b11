"""Deployments silence their fleet on a real Alertmanager, and never an alert on failures that users see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from observatory.nodes import Paths
from observatory.nodes.alertmanager import silences_file
from observatory.operations.database_exchange import CLIENTS_WAIT
from observatory.platforms import alertmanager as silencing
from observatory.platforms.alertmanager import Alertmanager, AlertmanagerError, FleetSilences
from observatory.platforms.silence_terms import NEVER, SilenceRefusedError
from tests.monitoring.conftest import Pager
from tests.support.ports import free_port
from tests.support.waiting import until

pytestmark = pytest.mark.slow

MOVING = [
    {"alertname": "StorageInstanceDown", "stack": "a", "fleet": "green", "severity": "warning"},
    {"alertname": "StorageWriteLatencyHigh", "stack": "a", "fleet": "green", "severity": "warning"},
]
OTHERS = [
    {"alertname": "StorageInstanceDown", "stack": "a", "fleet": "blue", "severity": "warning"},
    {"alertname": "StorageInstanceDown", "stack": "b", "fleet": "green", "severity": "warning"},
    {"alertname": "StorageServiceDown", "stack": "a", "fleet": "green", "severity": "critical"},
    {"alertname": "StorageErrorBudgetFastBurn", "stack": "a", "fleet": "green", "severity": "critical"},
    {"alertname": "StorageDatabaseDown", "stack": "a", "severity": "critical"},
]
LASTING_S = 600.0  # longer than any test, however busy the machine is
SILENCED = {("StorageInstanceDown", "green"), ("StorageWriteLatencyHigh", "green")}


class Journal:
    """A journal that keeps its events in memory."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, event: str, **details: Any) -> None:
        self.events.append({"event": event, **details})


@pytest.fixture
def alerts(pager: Pager) -> Alertmanager:
    return Alertmanager(url=pager.alertmanager, stack="a", client=pager.client)


def unsilenced(_event: str, **details: Any) -> None:
    pytest.fail(f"Alertmanager did not accept a silence: {details}")


def test_only_the_moving_fleet_is_silenced_and_only_during_its_deployment(pager: Pager, alerts: Alertmanager) -> None:
    with FleetSilences(alerts, unsilenced).moving("d1", "green"):
        pager.fire(*MOVING, *OTHERS)
        until(lambda: pager.silenced() == SILENCED, "the silences")
        (silence,) = alerts.silences()
        assert silence.created_by == "d1"
    assert alerts.silences() == []
    until(lambda: pager.silenced() == set(), "the end of the silences")


def test_an_interrupted_deployment_leaves_no_silence(alerts: Alertmanager) -> None:
    def interrupted() -> None:
        with FleetSilences(alerts, unsilenced).moving("d1", "green"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert alerts.silences() == []


def test_silences_of_a_killed_command_are_reused_or_ended(alerts: Alertmanager) -> None:
    alerts.silence(fleet="green", alert=None, seconds=LASTING_S, created_by="d1", reason="killed")
    other = alerts.silence(fleet="green", alert=None, seconds=LASTING_S, created_by="d2", reason="another deployment")
    silences = FleetSilences(alerts, unsilenced)
    with silences.moving("d1", "green"):
        assert {each.created_by for each in alerts.silences()} == {"d1", "d2"}
        assert len(alerts.silences()) == 2
    assert [each.id for each in alerts.silences()] == [other]
    silences.end("d2")
    assert alerts.silences() == []


def test_silence_is_short_and_extended(alerts: Alertmanager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silencing, "EXTEND_SECONDS", 0.1)
    with FleetSilences(alerts, unsilenced).moving("d1", "green"):
        (first,) = alerts.silences()
        assert (first.ends - first.starts).total_seconds() <= silencing.SILENCE_SECONDS + 1
        until(lambda: alerts.silences()[0].ends > first.ends, "the extension of the silence")
        assert len(alerts.silences()) == 1


def test_the_alert_that_a_rollback_causes_is_silenced_until_prometheus_has_seen_its_end(
    pager: Pager, alerts: Alertmanager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silencing, "AFTER_SECONDS", LASTING_S)
    exhausted = {"alertname": CLIENTS_WAIT, "stack": "a", "severity": "critical", "user": "writer_a"}
    with FleetSilences(alerts, unsilenced).announced("r1", CLIENTS_WAIT, "the database is being exchanged"):
        pager.fire(exhausted, *MOVING, *OTHERS)
        until(lambda: pager.silenced() == {(CLIENTS_WAIT, "a")}, "the silence")
    assert [each.created_by for each in alerts.silences()] == ["r1"]
    monkeypatch.setattr(silencing, "AFTER_SECONDS", 10.0)
    with FleetSilences(alerts, unsilenced).announced("r1", CLIENTS_WAIT, "the database is being exchanged"):
        pass
    until(lambda: alerts.silences() == [], "the end of the silence")


def test_unreachable_alertmanager_is_recorded_and_blocks_nothing() -> None:
    port = free_port()
    journal, done = Journal(), []
    with FleetSilences(Alertmanager(url=f"http://127.0.0.1:{port}", stack="a"), journal).moving("d1", "green"):
        done.append(True)
    assert done
    assert [(each["event"], each["what"]) for each in journal.events] == [
        ("not-silenced", "silence"),
        ("not-silenced", "end"),
    ]
    assert f"http://127.0.0.1:{port}" in journal.events[0]["reason"]


def test_matchers_select_alerts_and_never_those_that_must_page(pager: Pager, alerts: Alertmanager) -> None:
    alerts.silence(
        fleet=None,
        alert=None,
        matchers=['fleet=~"gr.*"'],
        seconds=LASTING_S,
        created_by="me",
        reason='a "noisy" neighbour',
    )
    pager.fire(*MOVING, *OTHERS)
    until(lambda: pager.silenced() == SILENCED, "the silences")
    (silence,) = alerts.silences()
    assert 'fleet=~"gr.*"' in silence.matchers
    assert silence.reason == 'a "noisy" neighbour'


def test_a_silence_that_others_made_is_listed_if_it_may_cover_the_stack(pager: Pager, alerts: Alertmanager) -> None:
    def made_elsewhere(name: str, value: str) -> str:
        matcher = {"name": name, "value": value, "isRegex": False, "isEqual": True}
        times = {"startsAt": "2020-01-01T00:00:00Z", "endsAt": "2100-01-01T00:00:00Z"}
        document = {"matchers": [matcher], **times, "createdBy": "someone", "comment": "c"}
        answer = pager.http.post(f"{pager.alertmanager}/api/v2/silences", json=document).raise_for_status()
        return str(answer.json()["silenceID"])

    broad = made_elsewhere("severity", "critical")
    made_elsewhere("stack", "b")
    assert [each.id for each in alerts.covering_silences()] == [broad]
    assert alerts.silences() == []


def test_a_silence_of_a_warning_covers_its_escalation_and_no_other(pager: Pager, alerts: Alertmanager) -> None:
    alerts.silence(fleet=None, alert="StorageInstanceDown", seconds=LASTING_S, created_by="me", reason="r")
    escalation = {"alertname": "StorageWarningUnattended", "stack": "a", "severity": "critical"}
    pager.fire(
        MOVING[0],
        {**escalation, "escalated": "StorageInstanceDown", "fleet": "green"},
        {**escalation, "escalated": "StorageConfigReloadFailed"},
        {**escalation, "alertname": "StorageNotificationsFailing"},
    )
    expected = {("StorageInstanceDown", "green"), ("StorageWarningUnattended", "green")}
    until(lambda: pager.silenced() == expected, "the silences")


@pytest.mark.parametrize("alert", NEVER)
def test_alerts_on_failures_that_users_see_are_never_silenced(alert: str) -> None:
    alertmanager = Alertmanager(url="http://127.0.0.1:1", stack="a")
    with pytest.raises(SilenceRefusedError, match=alert):
        alertmanager.silence(fleet="green", alert=alert, seconds=60, created_by="me", reason="noise")


def test_whole_stack_is_never_silenced() -> None:
    with pytest.raises(SilenceRefusedError, match="fleet"):
        Alertmanager(url="http://127.0.0.1:1", stack="a").silence(
            fleet=None, alert=None, seconds=60, created_by="me", reason="noise"
        )


def test_unknown_silence_is_reported(alerts: Alertmanager) -> None:
    with pytest.raises(AlertmanagerError, match="404"):
        alerts.end("00000000-0000-0000-0000-000000000000")


def test_a_kept_silence_and_its_end_outlive_a_killed_alertmanager(pager: Pager) -> None:
    file = pager.sandbox.host_path(silences_file(Paths()))
    alertmanager = Alertmanager(url=pager.alertmanager, stack="a", client=pager.client, snapshot=file)
    made = alertmanager.silence(fleet="green", alert=None, seconds=LASTING_S, created_by="me", reason="noise")
    alertmanager.wait_until_kept()
    pager.kill_alertmanager()
    assert [each.id for each in alertmanager.silences()] == [made]
    alertmanager.end(made)
    alertmanager.wait_until_kept()
    pager.kill_alertmanager()
    assert alertmanager.silences() == []


def test_a_silence_that_is_not_written_is_reported(
    alerts: Alertmanager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silencing, "KEPT_SECONDS", 0.2)
    with pytest.raises(AlertmanagerError, match="is lost"):
        replace(alerts, snapshot=tmp_path / "never").wait_until_kept()
