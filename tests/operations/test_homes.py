"""Homes of stacks whose state was removed without `down`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from observatory.engines import embedded as engine
from observatory.operations.stack_status import status
from observatory.operations.stack_up import _report_homes_without_state
from observatory.platforms.stack_state import state_options
from observatory.progress import Progress
from observatory.runtime.home import HomeError
from observatory.workspace import Workspace
from tests.support.checkout import SOURCE


def test_a_home_whose_stack_no_state_has_is_named(tmp_path: Path) -> None:
    shutil.copy(SOURCE / "Pulumi.yaml", tmp_path)
    workspace = Workspace(root=tmp_path, stack="local")
    for name in ("local", "removed", "kept", ".local.removed-1"):
        (workspace.home.parent / name).mkdir(parents=True)
    engine.init(state_options(Workspace(root=tmp_path, stack="kept")))
    seen: list[Progress] = []
    _report_homes_without_state(workspace, seen.append)
    assert [each.task for each in seen] == [
        "no state has the stack removed: `observatory down -e removed` removes its data"
    ]


def test_status_names_a_home_that_another_state_has(tmp_path: Path) -> None:
    shutil.copy(SOURCE / "Pulumi.yaml", tmp_path)
    (tmp_path / "Pulumi.local.yaml").write_text("config: {}\n")
    workspace = Workspace(root=tmp_path, stack="local")
    workspace.home.mkdir(parents=True)
    assert status(workspace).rollout is None
    (workspace.home / "stack").write_text("llm-observatory/renamed\n")
    with pytest.raises(HomeError, match="renamed"):
        status(workspace)
