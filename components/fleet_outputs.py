"""The output `fleets`, which is the same on every platform."""

from __future__ import annotations

from typing import Any

from observatory.documents.rollout import RolloutDocument
from observatory.settings import FLEETS, FleetName


def fleet_outputs(size: int, rollout: RolloutDocument) -> dict[FleetName, dict[str, Any]]:
    """Return each fleet's size with its version and weight, its rolling update, and its stopped instances."""
    stated = {"version", "weight", "rolling"}
    return {
        name: {
            "size": size,
            **rollout.fleet(name).model_dump(include=stated, exclude_none=True),
            **({"stopped": list(rollout.fleet(name).stopped)} if rollout.fleet(name).stopped else {}),
        }
        for name in FLEETS
    }
