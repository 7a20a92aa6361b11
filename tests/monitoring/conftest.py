"""A sandbox for the tools of Prometheus and Alertmanager, and a real Alertmanager with its receiver."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from observatory.nodes import Paths, Unit
from observatory.nodes.alertmanager import alert_receiver, alertmanager
from observatory.runtime import Probe, Program, Sandbox, find_free_ports
from observatory.settings import LocalSettings, Ports


@pytest.fixture
def sandbox(tmp_path: Path, rootfs: Path) -> Iterator[Sandbox]:
    """Return a sandbox that is not started; it is stopped after the test."""
    sandbox = Sandbox(tmp_path / "home", rootfs)
    yield sandbox
    sandbox.stop(timeout=10)


class Pager:
    """A real Alertmanager with its receiver."""

    def __init__(self, settings: LocalSettings) -> None:
        self.alertmanager = f"http://127.0.0.1:{settings.ports.alertmanager}"
        self.receiver = f"http://127.0.0.1:{settings.ports.alert_receiver}"

    def fire(self, *alerts: dict[str, str]) -> None:
        document = [{"labels": labels} for labels in alerts]
        httpx.post(f"{self.alertmanager}/api/v2/alerts", json=document).raise_for_status()

    def silenced(self) -> set[tuple[str, str]]:
        """Return (alert, fleet or stack) of each silenced alert."""
        alerts = httpx.get(f"{self.alertmanager}/api/v2/alerts").raise_for_status().json()
        silenced = [each["labels"] for each in alerts if each["status"]["silencedBy"]]
        return {(labels["alertname"], labels.get("fleet", labels["stack"])) for labels in silenced}

    def inhibited(self) -> set[tuple[str, str]]:
        """Return (alert, stack) of each inhibited alert."""
        alerts = httpx.get(f"{self.alertmanager}/api/v2/alerts").raise_for_status().json()
        return {(a["labels"]["alertname"], a["labels"]["stack"]) for a in alerts if a["status"]["inhibitedBy"]}

    def received(self, receiver: str) -> list[dict[str, Any]]:
        records = httpx.get(f"{self.receiver}/alerts", params={"receiver": receiver}).raise_for_status().json()
        return [alert for record in records for alert in record["notification"]["alerts"]]


@pytest.fixture
def pager(sandbox: Sandbox) -> Iterator[Pager]:
    ports = dict(zip(Ports.model_fields, find_free_ports(len(Ports.model_fields)), strict=True))
    settings = LocalSettings(ports=Ports(**ports))
    sandbox.start()
    for unit in (alert_receiver(settings, Paths()), alertmanager(settings, Paths())):
        start(sandbox, unit)
    yield Pager(settings)
    sandbox.stop()


def start(sandbox: Sandbox, unit: Unit) -> None:
    for directory in unit.directories:
        sandbox.make_directory(directory)
    for path, content in unit.files.items():
        sandbox.write_file(path, content)
    sandbox.supervisor.apply(Program(name=unit.name, command=unit.command))
    sandbox.supervisor.wait_ready(unit.name, Probe(**unit.ready.target()))
