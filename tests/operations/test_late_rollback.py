"""A notification of Alertmanager after a promotion proposes or performs a rollback, once, for this stack only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from observatory.delivery.deployment import deploy
from observatory.delivery.environment import Environment
from observatory.documents.journal import FileJournal, entries
from observatory.operations import late_rollback
from observatory.operations.late_rollback import take_alerts
from observatory.progress import silent
from observatory.workspace import Workspace
from tests.delivery.environment import Simulation, simulation
from tests.delivery.faults import blue_green
from tests.delivery.test_late_rollback import ALARMED


class Stack:
    """A simulated stack on which v0.2.0 was just promoted, and the rollbacks that were performed."""

    def __init__(self, root: Path, setting: str) -> None:
        (root / "Pulumi.local.yaml").write_text(
            f"config:\n  llm-observatory:delivery: {{ rollback_on_alert: {setting} }}\n"
        )
        self.workspace = Workspace(root=root, stack="local")
        self.simulation: Simulation = simulation()
        self.simulation.wall_offset = 10**9  # the journal's clock is the machine's: its promotion lies ahead of this
        self.simulation.record = FileJournal(self.workspace.journal, silent).record  # type: ignore[method-assign]
        deploy(self.simulation.environment(), blue_green())
        self.simulation.interval = ALARMED
        self.performed: list[str] = []

    def environment(self, *_: Any, **__: Any) -> Environment:
        return self.simulation.environment()

    def roll_back(self, _workspace: Workspace, *, reason: str, emergency: bool) -> None:
        assert emergency
        self.performed.append(reason)

    def events(self) -> list[str]:
        return [entry.event for entry in entries(self.workspace.journal) if entry.event in late_rollback.DECIDED]


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Stack:
    made = Stack(tmp_path, request.param)
    monkeypatch.setattr(late_rollback, "required_outputs", lambda *_, **__: {})
    monkeypatch.setattr(late_rollback, "delivery_environment", made.environment)
    monkeypatch.setattr(late_rollback, "roll_back_application", made.roll_back)
    return made


def notification(status: str = "firing", **labels: str) -> dict[str, Any]:
    known = {"alertname": "StorageErrorBudgetFastBurn", "stack": "local", "fleet": "green", "rollback": "true"}
    return {"alerts": [{"status": status, "labels": {**known, **labels}}]}


@pytest.mark.parametrize("stack", ["propose"], indirect=True)
def test_a_rollback_is_proposed_once_and_not_performed(stack: Stack) -> None:
    assert "was proposed" in take_alerts(stack.workspace, notification())
    assert "already decided" in take_alerts(stack.workspace, notification())
    assert stack.events() == ["propose-rollback"]
    assert stack.performed == []


@pytest.mark.parametrize("stack", ["perform"], indirect=True)
def test_a_rollback_is_performed_once_where_the_setting_says_so(stack: Stack) -> None:
    assert "was rolled back" in take_alerts(stack.workspace, notification())
    assert "already decided" in take_alerts(stack.workspace, notification())
    assert stack.performed == ["StorageErrorBudgetFastBurn fires"]
    assert stack.events() == ["perform-rollback"]


@pytest.mark.parametrize("stack", ["perform"], indirect=True)
@pytest.mark.parametrize(
    "other",
    [
        {},
        {"alerts": []},
        notification(status="resolved"),
        notification(stack="other"),
        notification(fleet="red"),
        notification(rollback="false"),
        notification(fleet="blue"),
    ],
)
def test_other_alerts_cause_no_rollback(stack: Stack, other: dict[str, Any]) -> None:
    take_alerts(stack.workspace, other)
    assert stack.performed == []
    assert stack.events() == []
