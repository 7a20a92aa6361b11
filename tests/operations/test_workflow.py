"""What a workflow does about others who come in between; the steps themselves run on a real stack in tests/stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from observatory.delivery.errors import TakenOverError
from observatory.documents.rollout import RolloutDocument
from observatory.operations import release_workflow as workflow
from observatory.workspace import Workspace


def test_an_emergency_while_a_release_is_prepared_keeps_it_from_the_service(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, stack="local")
    current = workspace.rollout.create(RolloutDocument.first(version="v0.1.0", sha256="a" * 64, active_fleet="blue"))
    with workflow._not_taken_over(workspace):
        current = workspace.rollout.compare_and_set(current, current.model_copy(update={"schema_target": 6}))
    with pytest.raises(TakenOverError, match=r"fencing number 1, it was 0\), so the service was not touched"):  # noqa: SIM117
        with workflow._not_taken_over(workspace):
            workspace.rollout.compare_and_set(current, current.model_copy(update={"fencing": 1}))
