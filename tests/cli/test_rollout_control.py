"""What `rollout pause`, `resume`, `promote` and `abort` answer, by the rollout document."""

from __future__ import annotations

from typing import Any

import pytest

from observatory.cli.delivery import _answer
from observatory.delivery.deployment import deploy
from observatory.documents.rollout import Request
from observatory.operations import RolloutControl
from tests.delivery.environment import simulation
from tests.delivery.faults import blue_green


def control(*, acknowledged: bool, replaced: bool = False, **deployment: Any) -> RolloutControl:
    """Return the result of a request to a running command."""
    done = deploy(simulation().environment(), blue_green())
    assert done.deployment is not None
    changed = done.deployment.model_copy(update={"status": "shifting", **deployment})
    rollout = done.model_copy(update={"deployment": changed})
    return RolloutControl(
        rollout=rollout, acknowledged=acknowledged, replaced=replaced, running=True, last="verifying green"
    )


@pytest.mark.parametrize(
    ("request_", "deployment", "answer"),
    [
        ("pause", {}, "it stays at this step, and its gate keeps evaluating"),
        ("pause", {"status": "preparing"}, "pauses before the first step: until `rollout resume` the version gets no"),
        ("promote", {}, "ends the bake of this step"),
        ("abort", {"status": "rolling-back"}, "rolls the deployment back"),
        (None, {}, "continues"),
    ],
)
def test_what_the_running_command_does(request_: Request | None, deployment: dict[str, Any], answer: str) -> None:
    assert answer in _answer(control(acknowledged=True, **deployment), request_)


def test_a_request_that_was_not_read_yet_names_the_last_event() -> None:
    answer = _answer(control(acknowledged=False), "pause")
    assert answer.endswith("has not reached its next evaluation; its last event: verifying green")


def test_a_request_that_another_operator_has_replaced_is_not_called_followed() -> None:
    assert "request has replaced it before the running command read it" in _answer(
        control(acknowledged=False, replaced=True), "pause"
    )
