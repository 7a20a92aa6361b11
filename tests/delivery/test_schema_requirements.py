import json
from pathlib import Path

import pytest

from observatory.delivery.releases import ReleaseError, ReleaseStore
from observatory.delivery.schema_requirements import schema_needs
from observatory.documents.rollout import FleetState, RolloutDocument

DIGEST = "0" * 64


def store(directory: Path, **schema_max: int) -> ReleaseStore:
    for name, newest in schema_max.items():
        version = name.replace("_", ".")
        manifest = {"name": "s", "version": version, "sha256": DIGEST, "schema_min": 3, "schema_max": newest}
        (directory / f"{version}.json").write_text(json.dumps(manifest))
    return ReleaseStore(directory)


def document() -> RolloutDocument:
    return RolloutDocument(
        blue=FleetState(version="v0.5.0", sha256=DIGEST, weight=100),
        green=FleetState(version="v0.4.0", sha256=DIGEST, weight=0),
    )


def test_live_releases_and_those_for_a_rollback_have_requirements(tmp_path: Path) -> None:
    assert schema_needs(document(), store(tmp_path, v0_5_0=7, v0_4_0=6)) == [
        ("blue (live)", "v0.5.0", 3, 7),
        ("green (kept for rollback)", "v0.4.0", 3, 6),
    ]


def test_the_requirements_of_a_release_that_is_not_stored_are_unknown(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"v0\.4\.0 is not in the store"):
        schema_needs(document(), store(tmp_path, v0_5_0=7))
    assert len(schema_needs(document(), store(tmp_path, v0_5_0=7), missing_ok=True)) == 1
