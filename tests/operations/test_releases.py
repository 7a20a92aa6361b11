"""Files of releases that are not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from observatory.cli.delivery import _release_json, _release_row
from observatory.delivery.releases import ReleaseError
from observatory.operations import add_release, list_releases, sign_release
from observatory.workspace import Workspace
from tests.delivery.test_releases import release

TAKE_A_FILE = pytest.mark.parametrize("take", [add_release, sign_release])


@TAKE_A_FILE
def test_a_missing_artifact_is_named(take: Callable[[Workspace, Path], object], tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"gone\.tar\.gz: no such file: name the artifact"):
        take(Workspace(root=tmp_path, stack="local"), tmp_path / "gone.tar.gz")


@TAKE_A_FILE
def test_a_missing_manifest_is_named_with_its_artifact(
    take: Callable[[Workspace, Path], object], tmp_path: Path
) -> None:
    (tmp_path / "built.tar.gz").touch()
    with pytest.raises(ReleaseError, match=r"built\.json: no such file: fetch the manifest of built\.tar\.gz"):
        take(Workspace(root=tmp_path, stack="local"), tmp_path / "built.tar.gz")


def test_a_damaged_manifest_hides_no_other_release(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, stack="local")
    for version in ("v0.1.0", "v0.3.0"):
        artifact, _ = release(tmp_path, version=version, key=None)
        sign_release(workspace, artifact)
        add_release(workspace, artifact)
    (workspace.releases.directory / "v0.2.0.json").write_text("{")
    shutil.copy(workspace.releases.directory / "v0.1.0.json", workspace.releases.directory / "v0.4.0.json")
    found = {each.version: each for each in list_releases(workspace)}
    assert [each.version for each in found.values() if each.manifest and each.signer] == ["v0.1.0", "v0.3.0"]
    assert "v0.2.0.json: not a release manifest" in str(found["v0.2.0"].objection)
    assert "v0.4.0.json: is the manifest of v0.1.0" in str(found["v0.4.0"].objection)
    assert (_release_row(found["v0.2.0"])[:2], _release_row(found["v0.3.0"])[0]) == (("v0.2.0", "damaged"), "v0.3.0")
    assert _release_json(found["v0.2.0"])["version"] == "v0.2.0"
