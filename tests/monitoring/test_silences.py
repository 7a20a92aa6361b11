"""Silences of deployments on a real Alertmanager: they hold back the moving fleet, never what users suffer from."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from observatory.platforms import alertmanager as silencing
from observatory.platforms.alertmanager import (
    NEVER,
    Alertmanager,
    AlertmanagerError,
    FleetSilences,
    SilenceRefusedError,
)
from observatory.runtime import find_free_ports
from tests.monitoring.conftest import Pager

DEADLINE_S = 60
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
SILENCED = {("StorageInstanceDown", "green"), ("StorageWriteLatencyHigh", "green")}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


class Told:
    """A journal that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, event: str, **details: Any) -> None:
        self.events.append({"event": event, **details})


@pytest.fixture
def alerts(pager: Pager) -> Alertmanager:
    return Alertmanager(url=pager.alertmanager, stack="a")


def unsilenced(_event: str, **details: Any) -> None:
    pytest.fail(f"Alertmanager could not be told: {details}")


def test_only_the_moving_fleet_is_held_back_and_only_as_long_as_it_moves(pager: Pager, alerts: Alertmanager) -> None:
    with FleetSilences(alerts, unsilenced).moving("d1", "green"):
        pager.fire(*MOVING, *OTHERS)
        wait_for(lambda: pager.silenced() == SILENCED)
        (silence,) = alerts.silences()
        assert silence.created_by == "d1"
    assert alerts.silences() == []
    wait_for(lambda: pager.silenced() == set())


def test_an_interrupted_deployment_leaves_no_silence(alerts: Alertmanager) -> None:
    def interrupted() -> None:
        with FleetSilences(alerts, unsilenced).moving("d1", "green"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert alerts.silences() == []


def test_what_a_killed_command_left_is_gone_on_with_or_ended(alerts: Alertmanager) -> None:
    alerts.silence(fleet="green", alert=None, seconds=60, by="d1", reason="killed")
    other = alerts.silence(fleet="green", alert=None, seconds=60, by="d2", reason="somebody else's")
    silences = FleetSilences(alerts, unsilenced)
    with silences.moving("d1", "green"):
        assert {each.created_by for each in alerts.silences()} == {"d1", "d2"}
        assert len(alerts.silences()) == 2
    assert [each.id for each in alerts.silences()] == [other]
    silences.end("d2")
    assert alerts.silences() == []


def test_a_silence_is_short_and_extended(alerts: Alertmanager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silencing, "EXTEND_SECONDS", 0.1)
    with FleetSilences(alerts, unsilenced).moving("d1", "green"):
        (first,) = alerts.silences()
        assert (first.ends - first.starts).total_seconds() <= silencing.SILENCE_SECONDS + 1
        wait_for(lambda: alerts.silences()[0].ends > first.ends)
        assert len(alerts.silences()) == 1


def test_an_alertmanager_that_is_down_stops_nothing_and_is_told() -> None:
    (port,) = find_free_ports(1)
    tell, done = Told(), []
    with FleetSilences(Alertmanager(url=f"http://127.0.0.1:{port}", stack="a"), tell).moving("d1", "green"):
        done.append(True)
    assert done
    assert [(each["event"], each["what"]) for each in tell.events] == [
        ("not-silenced", "hold back"),
        ("not-silenced", "end"),
    ]
    assert f"http://127.0.0.1:{port}" in tell.events[0]["reason"]


@pytest.mark.parametrize("alert", NEVER)
def test_what_users_suffer_from_is_never_silenced(alert: str) -> None:
    nobody = Alertmanager(url="http://127.0.0.1:1", stack="a")
    with pytest.raises(SilenceRefusedError, match=alert):
        nobody.silence(fleet="green", alert=alert, seconds=60, by="me", reason="noise")


def test_a_whole_stack_is_never_silenced() -> None:
    with pytest.raises(SilenceRefusedError, match="fleet"):
        Alertmanager(url="http://127.0.0.1:1", stack="a").silence(
            fleet=None, alert=None, seconds=60, by="me", reason="noise"
        )


def test_an_unknown_silence_is_told(alerts: Alertmanager) -> None:
    with pytest.raises(AlertmanagerError, match="404"):
        alerts.end("00000000-0000-0000-0000-000000000000")
