"""Entering a root filesystem that is not there, as after the shared cache was removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from observatory.runtime import bubblewrap
from observatory.runtime.errors import RootfsError


@pytest.mark.parametrize("name", ["absent", "half-removed", "link"])
def test_a_missing_root_filesystem_has_its_place_and_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / "half-removed/usr/bin").mkdir(parents=True)
    (tmp_path / "half-removed/usr/bin/bwrap").touch()
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(
        RootfsError, match=rf"{name} is missing or incomplete: it lacks usr/bin/.*\nRun `observatory up`"
    ):
        bubblewrap.entry(tmp_path / name, tmp_path)
