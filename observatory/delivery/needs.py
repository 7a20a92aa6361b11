"""Which versions of the schema the fleets' releases work with, as plain data for those who change the schema."""

from __future__ import annotations

from typing import get_args

from observatory.delivery.protocols import Releases
from observatory.delivery.rollout import FleetName, RolloutDocument

SchemaNeed = tuple[str, str, int, int]  # fleet and how it is used, release, schema_min, schema_max


def schema_needs(rollout: RolloutDocument, store: Releases, *, missing_ok: bool = False) -> list[SchemaNeed]:
    """Return the needs of both fleets' releases: what is live, and what is kept for a rollback.

    Args:
        rollout: what runs where.
        store: has the releases' manifests.
        missing_ok: leave out a release that is not in the store, for a plan that is made before it is built.

    Raises:
        ReleaseError: a release is not in the store, or its manifest is damaged.
    """
    kept = store.versions()
    needs = []
    for name in get_args(FleetName):
        fleet = rollout.fleet(name)
        if missing_ok and fleet.version not in kept:
            continue
        manifest = store.manifest(fleet.version)
        use = "live" if fleet.weight else "kept for rollback"
        needs.append((f"{name} ({use})", fleet.version, manifest.schema_min, manifest.schema_max))
    return needs
