"""Names of what is not finished yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from observatory.files.atomic import partial_path


def test_what_a_dead_process_began_goes_with_the_next_write_and_what_lives_stays(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from observatory.files.atomic import partial_path\n"
        "partial_path(Path(sys.argv[1])).write_text('half'); partial_path(Path(sys.argv[1])).mkdir()"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "file"], check=True)
    (tmp_path / ".hidden.partial").touch()
    assert len(list(tmp_path.iterdir())) == 3
    mine = partial_path(tmp_path / "file")
    mine.touch()
    assert partial_path(tmp_path / "other") != mine
    assert sorted(tmp_path.iterdir()) == sorted([mine, tmp_path / ".hidden.partial"])
