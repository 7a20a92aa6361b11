"""Which versions of the schema the fleets' releases work with, as plain data for those who change the schema."""

from __future__ import annotations

from typing import get_args

from observatory.delivery.environment import Releases
from observatory.documents.rollout import RolloutDocument
from observatory.settings import FleetName

SchemaNeed = tuple[str, str, int, int]  # fleet and how it is used, release, schema_min, schema_max


def schema_needs(rollout: RolloutDocument, store: Releases, *, missing_ok: bool = False) -> list[SchemaNeed]:
    """Return the needs of both fleets' releases, a rolling update's too: what is live, what is kept for a rollback.

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
        use = "live" if fleet.weight else "kept for rollback"
        for version in (fleet.version, *((fleet.rolling.version,) if fleet.rolling else ())):
            if missing_ok and version not in kept:
                continue
            manifest = store.manifest(version)
            needs.append((f"{name} ({use})", version, manifest.schema_min, manifest.schema_max))
    return needs
