"""Entering a root filesystem that is not there, as after the shared cache was removed."""

from __future__ import annotations

import os
import subprocess
import sys
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


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_without_the_right_to_mount_is_refused_with_the_remedy_for_root(rootfs: Path, tmp_path: Path) -> None:
    """As in a container without CAP_SYS_ADMIN; the daemons do not fall back to running as root."""
    program = (
        "import sys; from pathlib import Path; from observatory.runtime import Sandbox, SandboxUnavailable\n"
        "try: Sandbox(Path(sys.argv[1]), Path(sys.argv[2])).start()\n"
        "except SandboxUnavailable as error: print(error)"
    )
    limited = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    command = [*limited, sys.executable, "-c", program, str(tmp_path / "home"), str(rootfs)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "root may not mount here" in output
    assert "--cap-add SYS_ADMIN\n- or run the command as an ordinary user" in output
