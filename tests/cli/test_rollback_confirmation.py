"""The prompt of a rollback names what it undoes, and nothing else is undone after it was confirmed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from observatory import operations
from observatory.cli import delivery, main
from observatory.delivery.deployment import deploy
from observatory.delivery.errors import DeliveryRefusedError
from observatory.delivery.rollback import roll_back
from observatory.documents.rollout import RolloutDocument
from observatory.workspace import Workspace
from tests.cli.test_absent_stack import use_checkout
from tests.delivery.environment import Simulation, simulation
from tests.delivery.faults import blue_green


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulation:
    """Return a stack where v0.2.0 was promoted, and whose checkout is the current directory."""
    use_checkout(tmp_path, monkeypatch)
    stack = simulation()
    Workspace(root=tmp_path, stack="local").rollout.create(deploy(stack.environment(), blue_green()))
    monkeypatch.setattr(sys, "argv", ["observatory", "rollback", "--method", "blue-green"])
    return stack


@pytest.mark.usefixtures("stack")
def test_the_prompt_names_the_deployment(capsys: pytest.CaptureFixture[str]) -> None:
    """A deployment that is still being tested is not in the document: the last one is that of the live version."""
    with pytest.raises(SystemExit):
        main()
    assert "This undoes the deployment of v0.2.0 to green, which is promoted." in capsys.readouterr().err


def test_a_deployment_that_began_during_the_prompt_is_not_undone(
    stack: Simulation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _refuse_other(stack, monkeypatch)
    assert "is no longer the last one: that of v0.3.0 to blue is promoted" in capsys.readouterr().err
    assert stack.live == {"blue": 100, "green": 0}


def test_nor_is_it_where_the_last_one_was_rolled_back_before(
    stack: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, undone = (
        Workspace(root=tmp_path, stack="local").rollout,
        roll_back(stack.environment(), actor="me", reason=""),
    )
    current = store.read()
    assert current is not None
    store.compare_and_set(current, undone)
    _refuse_other(stack, monkeypatch)
    assert "is no longer the last one: that of v0.3.0 to green is promoted" in capsys.readouterr().err
    assert stack.live == {"blue": 0, "green": 100}


def _refuse_other(stack: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the rollback; another deployment begins during its prompt."""

    def confirm(_question: str) -> None:
        deploy(stack.environment(), blue_green(version="v0.3.0", sha256="c" * 64))

    def undo(_workspace: Workspace, *, reason: str, only: str | None, **_: object) -> RolloutDocument:
        return roll_back(stack.environment(), actor="me", reason=reason, only=only)

    monkeypatch.setattr(delivery, "confirm", confirm)
    monkeypatch.setattr(operations, "roll_back_application", undo)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == DeliveryRefusedError.exit_code
