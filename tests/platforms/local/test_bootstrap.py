"""Restoring a lost rollout document from the stack's state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from observatory.documents.rollout import FleetState, Rolling, RolloutDocument
from observatory.platforms.local.bootstrap import fit_stopped_fleets, fleet_of_state
from observatory.platforms.recovered_rollout import recover_rollout
from observatory.progress import Phase, Progress
from observatory.workspace import Workspace

OLD, NEW = "a" * 64, "b" * 64
FLEET: dict[str, Any] = {"size": 3, "version": "v0.1.0", "weight": 100}
ROLLING = {"version": "v0.2.0", "sha256": NEW, "instances": ["blue-1"], "draining": []}
OWN = FleetState(version="v0.1.0", sha256=OLD, weight=100)
MIDDLE = OWN.model_copy(update={"rolling": Rolling(version="v0.2.0", sha256=NEW, instances=("blue-1",))})
MOVED = FleetState(version="v0.2.0", sha256=NEW, weight=100)


@pytest.mark.parametrize(
    ("fleet", "unpacked", "expected"),
    [
        (FLEET, {"v0.1.0": OLD}, OWN),
        ({**FLEET, "rolling": ROLLING}, {"v0.1.0": OLD, "v0.2.0": NEW}, MIDDLE),
        ({**FLEET, "rolling": ROLLING}, {"v0.2.0": NEW}, MOVED),
        ({**FLEET, "rolling": ROLLING}, {"v0.1.0": OLD}, OWN),
        ({**FLEET, "stopped": ["blue-1"]}, {"v0.1.0": OLD}, OWN.model_copy(update={"stopped": ("blue-1",)})),
    ],
    ids=["at rest", "in the middle", "all moved", "none moved", "stopped"],
)
def test_a_fleet_is_restored_from_its_unpacked_releases(
    fleet: dict[str, Any], unpacked: dict[str, str], expected: FleetState
) -> None:
    releases = {f"blue-{version}": {"sha256": digest} for version, digest in unpacked.items()}
    assert fleet_of_state("blue", fleet, releases) == expected


def test_a_fleet_without_a_release_cannot_be_restored() -> None:
    with pytest.raises(KeyError):
        fleet_of_state("blue", FLEET, {})


def test_an_enlarged_stopped_fleet_is_stopped_as_a_whole(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, stack="local")
    first = RolloutDocument.first(version="v0.1.0", sha256=OLD, active_fleet="blue")
    workspace.rollout.create(first.with_fleet("green", stopped=("green-1",)))
    fit_stopped_fleets(workspace, 2)
    found = workspace.rollout.read()
    assert found
    assert found.draining == {"blue": (), "green": ("green-1", "green-2")}
    fit_stopped_fleets(workspace, 2)
    again = workspace.rollout.read()
    assert again
    assert again.revision == found.revision


def test_up_writes_a_damaged_rollout_document_again_and_reports_it(tmp_path: Path) -> None:
    workspace, reports = Workspace(root=tmp_path, stack="local"), list[Progress]()
    first = RolloutDocument.first(version="v0.1.0", sha256="a" * 64, active_fleet="blue")
    workspace.rollout.create(first)
    recover_rollout(workspace.rollout, reports.append)
    assert reports == []
    workspace.rollout.path.write_text("{")
    recover_rollout(workspace.rollout, reports.append)
    assert [report.phase for report in reports] == [Phase.WARNED]
    assert "not a rollout document" in reports[0].task
    assert RolloutDocument.model_validate_json(workspace.rollout.path.read_bytes()).weights == first.weights
