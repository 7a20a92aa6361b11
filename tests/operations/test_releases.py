"""Files of releases that are not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from observatory.delivery.releases import ReleaseError
from observatory.operations import add_release, sign_release
from observatory.workspace import Workspace

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
