"""Which schema versions the fleets' releases work with, as plain data for deployments of the schema."""

from __future__ import annotations

from typing import get_args

from observatory.delivery.environment import Releases
from observatory.documents.rollout import RolloutDocument
from observatory.settings import FleetName

SchemaNeed = tuple[str, str, int, int]  # fleet and how it is used, release, schema_min, schema_max


def schema_needs(rollout: RolloutDocument, store: Releases, *, missing_ok: bool = False) -> list[SchemaNeed]:
    """Return the schema versions that each release needs which is live, or needed for a rollback.

    Args:
        rollout: with the releases of both fleets, and of a rolling update.
        store: with the releases' manifests.
        missing_ok: whether to leave out releases that are not in the store, as before their first build.

    Raises:
        ReleaseError: a release is not in the store, or its manifest is damaged.
    """
    stored = store.versions()
    needs = []
    for name in get_args(FleetName):
        fleet = rollout.fleet(name)
        use = "live" if fleet.weight else "kept for rollback"
        for version in (fleet.version, *((fleet.rolling.version,) if fleet.rolling else ())):
            if missing_ok and version not in stored:
                continue
            manifest = store.manifest(version)
            needs.append((f"{name} ({use})", version, manifest.schema_min, manifest.schema_max))
    return needs
