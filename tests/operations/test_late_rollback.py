"""A notification of Alertmanager after a promotion proposes or performs a rollback, once, for this stack only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from observatory.delivery.deployment import deploy
from observatory.delivery.environment import Environment
from observatory.delivery.errors import DeliveryRefusedError, RollbackFailedError
from observatory.delivery.rollback import roll_back
from observatory.documents.journal import FileJournal, entries
from observatory.operations import late_rollback
from observatory.operations.late_rollback import take_alerts
from observatory.progress import silent
from observatory.workspace import Workspace
from tests.delivery.environment import Killed, Simulation, simulation
from tests.delivery.faults import at_place, blue_green, canary, failing, raise_once
from tests.delivery.test_late_rollback import ALARMED

DECIDED = (late_rollback.PROPOSED, late_rollback.PERFORMED)


class Stack:
    """A simulated stack on which v0.2.0 was just promoted, and the rollbacks that were performed."""

    def __init__(self, root: Path, setting: str) -> None:
        (root / "Pulumi.local.yaml").write_text(
            f"config:\n  llm-observatory:delivery: {{ rollback_on_alert: {setting} }}\n"
        )
        self.workspace = Workspace(root=root, stack="local")
        self.simulation: Simulation = simulation()
        self.simulation.wall_offset = 10**9
        self.simulation.record = FileJournal(self.workspace.journal, silent).record  # type: ignore[method-assign]
        deploy(self.simulation.environment(), blue_green())
        self.simulation.interval = ALARMED
        self.performed: list[str] = []
        self.meanwhile: Callable[[], None] = lambda: None  # between a decision and its rollback

    def environment(self, *_: Any, **__: Any) -> Environment:
        return self.simulation.environment()

    def roll_back(self, _workspace: Workspace, *, reason: str, emergency: bool, only: str | None = None) -> None:
        assert emergency
        self.performed.append(reason)
        self.meanwhile()
        roll_back(self.environment(), actor="scheduler", reason=reason, only=only)

    def events(self) -> list[str]:
        return [entry.event for entry in entries(self.workspace.journal) if entry.event in DECIDED]


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
    assert "already proposed" in take_alerts(stack.workspace, notification())
    assert stack.events() == ["propose-rollback"]
    assert stack.performed == []


@pytest.mark.parametrize("stack", ["perform"], indirect=True)
def test_a_rollback_is_performed_once_where_the_setting_says_so(stack: Stack) -> None:
    assert "was rolled back" in take_alerts(stack.workspace, notification())
    assert "causes no rollback" in take_alerts(stack.workspace, notification())
    assert stack.performed == ["StorageErrorBudgetFastBurn fires"]
    assert stack.events() == ["perform-rollback"]


@pytest.mark.parametrize("stack", ["perform"], indirect=True)
@pytest.mark.parametrize("place", ["silent", "set_weights", "set_weights, done", "stop"])
def test_a_rollback_whose_scheduler_was_killed_is_performed_by_the_next_notification(stack: Stack, place: str) -> None:
    stack.simulation.fault = at_place(place, raise_once(Killed()))
    with pytest.raises(Killed):
        take_alerts(stack.workspace, notification())
    assert "was rolled back" in take_alerts(stack.workspace, notification())
    assert stack.simulation.live == {"blue": 100, "green": 0}
    assert stack.events() == ["perform-rollback"] * 2


@pytest.mark.parametrize("stack", ["perform"], indirect=True)
def test_a_rollback_that_fails_is_tried_again_until_an_operator_is_told_once(stack: Stack) -> None:
    stack.simulation.fault = failing("set_weights", once=False)
    for _ in range(late_rollback.ATTEMPTS):
        with pytest.raises(RollbackFailedError):
            take_alerts(stack.workspace, notification())
    for _ in range(2):
        assert "was begun 5 times and not finished" in take_alerts(stack.workspace, notification())
    assert len(stack.performed) == late_rollback.ATTEMPTS
    told = [entry for entry in entries(stack.workspace.journal) if "begun 5 times" in str(entry.details.get("reason"))]
    assert [entry.event for entry in told] == ["escalate"]


@pytest.mark.parametrize("stack", ["perform"], indirect=True)
def test_a_rollback_that_an_operator_has_begun_is_left_alone(stack: Stack) -> None:
    stack.simulation.fault = failing("set_weights", once=False)
    for begin in (take, by_hand):
        with pytest.raises(RollbackFailedError):
            begin(stack)
    stack.simulation.fault = lambda _place: None
    assert "causes no rollback" in take_alerts(stack.workspace, notification())


@pytest.mark.parametrize("stack", ["perform"], indirect=True)
def test_a_repair_that_is_deployed_meanwhile_is_not_rolled_back_instead(stack: Stack) -> None:
    def repair() -> None:
        stack.simulation.fault = at_place("sleep", raise_once(Killed()))
        with pytest.raises(Killed):
            deploy(stack.environment(), canary(version="v0.2.1", sha256="c" * 64))

    stack.meanwhile = repair
    with pytest.raises(DeliveryRefusedError, match=r"no longer the last one: that of v0\.2\.1 to blue is shifting"):
        take_alerts(stack.workspace, notification())
    assert stack.simulation.live == {"blue": 5, "green": 95}
    assert "causes no rollback" in take_alerts(stack.workspace, notification())


@pytest.mark.parametrize("stack", ["propose"], indirect=True)
def test_a_promotion_that_the_journal_lacks_can_be_rolled_back(stack: Stack) -> None:
    """Its command was killed after it had written the document, or the disk of the journal was full."""
    lines = stack.workspace.journal.read_text().splitlines(keepends=True)
    stack.workspace.journal.write_text("".join(line for line in lines if '"event": "promoted"' not in line))
    assert "was proposed" in take_alerts(stack.workspace, notification())


def take(stack: Stack) -> None:
    take_alerts(stack.workspace, notification())


def by_hand(stack: Stack) -> None:
    roll_back(stack.environment(), actor="me", reason="pages")


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
