"""A sandbox for the tools of Prometheus and Alertmanager, and a real Alertmanager with its receiver."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from observatory.nodes import Paths
from observatory.nodes.alertmanager import alert_receiver, alertmanager
from observatory.platforms import alertmanager as alertmanager_client
from observatory.platforms import prometheus_client
from observatory.runtime import Probe, Sandbox
from observatory.security.client_certificate import ClientCertificate
from observatory.settings import LocalSettings, Ports
from observatory.waiting import wait_until
from tests.support.certificates import sandbox_certificate
from tests.support.ports import free_ports
from tests.support.sandboxes import start_unit


@pytest.fixture(scope="module", autouse=True)
def _patience() -> Iterator[None]:
    """A daemon that runs answers, however busy the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        for client in (alertmanager_client, prometheus_client):
            patch.setattr(client, "ANSWER_SECONDS", 60.0)
        yield


@pytest.fixture
def sandbox(tmp_path: Path, rootfs: Path) -> Iterator[Sandbox]:
    """Return a sandbox that is not started; it is stopped after the test."""
    sandbox = Sandbox(tmp_path / "home", rootfs)
    yield sandbox
    sandbox.stop(timeout=10)


class Pager:
    """A real Alertmanager with its receiver."""

    def __init__(self, sandbox: Sandbox, settings: LocalSettings, client: ClientCertificate) -> None:
        self.sandbox, self.settings, self.unit = sandbox, settings, alertmanager(settings, Paths())
        self.alertmanager = f"https://127.0.0.1:{settings.ports.alertmanager}"
        self.receiver = f"https://127.0.0.1:{settings.ports.alert_receiver}"
        self.client = client
        self.http = httpx.Client(verify=client.context())

    def kill_alertmanager(self) -> None:
        """Kill Alertmanager by SIGKILL, and wait until the supervisor has started it again."""
        pid = self.sandbox.supervisor.status("alertmanager").pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: self.sandbox.supervisor.status("alertmanager").pid not in (pid, None), 60)
        probe = Probe(**self.unit.ready.target(self.sandbox.host_path))
        self.sandbox.supervisor.wait_ready("alertmanager", probe, timeout=60)

    def configure(self, text: str) -> None:
        """Replace Alertmanager's configuration, with heartbeats and notifications every second."""
        file = next(path for path in self.unit.files if path.endswith("alertmanager.yaml"))
        quick = re.sub(r"(group_(?:wait|interval)): \w+|(repeat_interval): 10s", r"\1\2: 1s", text)
        self.sandbox.write_file(file, quick)
        self.http.post(f"{self.alertmanager}/-/reload").raise_for_status()

    def fire(self, *alerts: dict[str, str]) -> None:
        document = [{"labels": labels} for labels in alerts]
        self.http.post(f"{self.alertmanager}/api/v2/alerts", json=document).raise_for_status()

    def silenced(self) -> set[tuple[str, str]]:
        """Return (alert, fleet or stack) of each silenced alert."""
        alerts = self.http.get(f"{self.alertmanager}/api/v2/alerts").raise_for_status().json()
        silenced = [each["labels"] for each in alerts if each["status"]["silencedBy"]]
        return {(labels["alertname"], labels.get("fleet", labels["stack"])) for labels in silenced}

    def muted(self) -> set[tuple[str, str]]:
        """Return (alert, time interval) of each alert that a time interval mutes."""
        groups = self.http.get(f"{self.alertmanager}/api/v2/alerts/groups").raise_for_status().json()
        alerts = [alert for group in groups for alert in group["alerts"]]
        return {(a["labels"]["alertname"], name) for a in alerts for name in a["status"].get("mutedBy") or ()}

    def inhibited_alerts(self) -> list[dict[str, str]]:
        """Return the labels of each inhibited alert."""
        alerts = self.http.get(f"{self.alertmanager}/api/v2/alerts").raise_for_status().json()
        return [each["labels"] for each in alerts if each["status"]["inhibitedBy"]]

    def inhibited_by(self, label: str) -> list[tuple[str, str]]:
        """Return (alert, value of a label) of each inhibited alert, sorted."""
        return sorted((labels["alertname"], labels[label]) for labels in self.inhibited_alerts())

    def inhibited(self) -> set[tuple[str, str]]:
        """Return (alert, stack) of each inhibited alert."""
        return {(labels["alertname"], labels["stack"]) for labels in self.inhibited_alerts()}

    def received(self, receiver: str) -> list[dict[str, Any]]:
        records = self.http.get(f"{self.receiver}/alerts", params={"receiver": receiver}).raise_for_status().json()
        return [alert for record in records for alert in record["notification"]["alerts"]]


@pytest.fixture
def pager(sandbox: Sandbox, tmp_path: Path) -> Iterator[Pager]:
    settings = LocalSettings(ports=Ports(**free_ports()))
    sandbox.start()
    client = sandbox_certificate(sandbox, tmp_path)
    for unit in (alert_receiver(settings, Paths()), alertmanager(settings, Paths())):
        start_unit(sandbox, unit)
    running = Pager(sandbox, settings, client)
    yield running
    running.http.close()
    sandbox.stop()
