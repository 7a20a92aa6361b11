"""Restoring a lost rollout document from the stack's state."""

from __future__ import annotations

from typing import Any

import pytest

from observatory.documents.rollout import FleetState, Rolling
from observatory.platforms.local.bootstrap import fleet_of_state

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
    ],
    ids=["at rest", "in the middle", "all moved", "none moved"],
)
def test_a_fleet_is_restored_from_its_unpacked_releases(
    fleet: dict[str, Any], unpacked: dict[str, str], expected: FleetState
) -> None:
    releases = {f"blue-{version}": {"sha256": digest} for version, digest in unpacked.items()}
    assert fleet_of_state("blue", fleet, releases) == expected


def test_a_fleet_without_a_release_cannot_be_restored() -> None:
    with pytest.raises(KeyError):
        fleet_of_state("blue", FLEET, {})
