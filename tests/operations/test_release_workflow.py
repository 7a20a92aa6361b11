"""A workflow with concurrent deployments; its steps run on a real stack in tests/stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from observatory.delivery.errors import TakenOverError
from observatory.documents.rollout import RolloutDocument
from observatory.operations import release_workflow as workflow
from observatory.platforms import platform_of
from observatory.settings import LocalSettings
from observatory.workspace import Workspace


def test_an_emergency_rollback_during_preparation_stops_the_workflow(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, stack="local")
    platform = platform_of(workspace, LocalSettings())
    current = workspace.rollout.create(RolloutDocument.first(version="v0.1.0", sha256="a" * 64, active_fleet="blue"))
    with workflow._not_taken_over(platform):
        current = workspace.rollout.compare_and_set(current, current.model_copy(update={"schema_target": 6}))
    with pytest.raises(TakenOverError, match=r"fencing number 1, expected 0\), so the service was not changed"):  # noqa: SIM117
        with workflow._not_taken_over(platform):
            workspace.rollout.compare_and_set(current, current.model_copy(update={"fencing": 1}))
