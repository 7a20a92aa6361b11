"""After the recovery of a lost machine `up` applies no migration that the database lacked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from observatory.backups.lost_machine import Recovered
from observatory.documents.rollout import FileRolloutStore, FleetState, RolloutDocument
from observatory.operations import lost_machine
from observatory.workspace import Workspace

FLEET = FleetState(version="v0.1.0", sha256="0" * 64, weight=0)
PRODUCT = list(range(1, 9))


@pytest.mark.parametrize(
    ("applied", "known", "target"),
    [
        (PRODUCT, PRODUCT, None),
        (PRODUCT[:6], PRODUCT, 6),
        ([*PRODUCT[:6], 500], [*PRODUCT, 500], 6),
        ([*PRODUCT, 500], [*PRODUCT, 500, 501], 500),
        (PRODUCT, [*PRODUCT, 500], 8),
        ([], PRODUCT, None),
    ],
)
def test_what_the_database_lacked_is_held_back(
    tmp_path: Path, applied: list[int], known: list[int], target: int | None
) -> None:
    store = FileRolloutStore(tmp_path / "rollout.json")
    store.create(RolloutDocument(blue=FLEET.model_copy(update={"weight": 100}), green=FLEET))
    recovered = Recovered(label="F", database_bytes=1, end="0/1", migrations=tuple(applied))
    lost_machine._hold_schema(cast("Workspace", SimpleNamespace(rollout=store)), recovered, known)
    found = store.read()
    assert found is not None
    assert found.schema_target == target
