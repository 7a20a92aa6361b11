"""Files and directories are written whole or not at all, and abandoned ones are removed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from observatory.files.atomic import (
    CLOCK_S,
    partial_path,
    remove_abandoned,
    replacing,
    scratch_directory,
    write_file,
    write_once,
)
from tests.support.small_disk import fill, small_disk


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_next_write_removes_what_a_dead_process_left_and_keeps_what_a_live_one_writes(tmp_path: Path) -> None:
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


def test_what_a_dead_process_left_is_removed_also_if_a_later_process_has_its_id(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as later:
        left, written = (tmp_path / f".file.{later.pid}-{number}.partial" for number in range(2))
        left.mkdir()
        written.touch()
        before = time.time() - 2 * CLOCK_S
        os.utime(left, (before, before))
        remove_abandoned(tmp_path)
        later.kill()
    assert names(tmp_path) == [written.name]


def test_a_scratch_directory_is_removed_at_the_end_and_after_a_kill_by_the_next_write(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from observatory.files.atomic import scratch_directory\n"
        "with scratch_directory(Path(sys.argv[1])) as scratch:\n"
        "    (scratch / 'part').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "file"], check=False)
    assert len(names(tmp_path)) == 1

    def interrupted() -> None:
        with scratch_directory(tmp_path / "file") as scratch:
            (scratch / "part").touch()
            assert names(tmp_path) == [scratch.name]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


def test_the_mode_of_a_file_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert write_file(tmp_path / "secret", "s")
        assert write_file(tmp_path / "public", b"p", mode=0o644)
        assert write_once(tmp_path / "once", lambda: "o")
    finally:
        os.umask(before)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "public").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "once").stat().st_mode & 0o777 == 0o600


def test_an_unchanged_file_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, "one")
    inode = path.stat().st_ino
    assert not write_file(path, "one")
    assert path.stat().st_ino == inode
    assert write_file(path, "two")
    assert write_file(path, "two", mode=0o640)
    assert path.read_text() == "two"


def test_a_failed_write_leaves_nothing_beside_the_target(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(IsADirectoryError):
        write_file(tmp_path / "target", "x")
    assert names(tmp_path) == ["target"]


def test_an_interrupted_replacement_leaves_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")

    def interrupted() -> None:
        with replacing(target) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["target"]


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    with replacing(tmp_path / "tree") as partial:
        partial.mkdir()
        (partial / "file").write_text("x")
        assert not (tmp_path / "tree").exists()
    assert names(tmp_path / "tree") == ["file"]
    with pytest.raises(OSError, match="not empty"), replacing(tmp_path / "tree") as another:
        another.mkdir()
    assert names(tmp_path) == ["tree"]


def test_of_many_writers_of_one_secret_one_writes_and_the_file_never_changes(tmp_path: Path) -> None:
    secret = tmp_path / "keys" / "secret"
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda number: write_once(secret, lambda: str(number)), range(8)))
    assert written.count(True) == 1
    assert secret.read_text() == str(written.index(True))
    assert names(secret.parent) == ["secret"]


def test_an_essential_file_is_written_over_its_old_content_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        write_file(disk / "weights", "blue 100\ngreen 0\n")
        fill(disk / "filler")
        with pytest.raises(OSError, match="No space left"):
            write_file(disk / "weights", "blue 0\n")
        assert write_file(disk / "weights", "blue 0\n", essential=True)
        assert (disk / "weights").read_text() == "blue 0\n"


def test_a_new_file_is_made_where_there_are_no_hard_links_and_replaces_none(tmp_path: Path) -> None:
    """As on a USB stick with FAT or exFAT."""
    script = (
        "import os, sys; from pathlib import Path; from observatory.files.atomic import creating\n"
        "from tests.support.no_links import refuse_links\n"
        "refuse_links()\n"
        "try: os.link(sys.argv[1], sys.argv[1] + '.link')\n"
        "except PermissionError: pass\n"
        "else: sys.exit('links are not refused')\n"
        "with creating(Path(sys.argv[2])) as file:\n"
        "    file.write(b'whole')\n"
        "    if len(sys.argv) > 3: Path(sys.argv[2]).write_text('of another process')\n"
    )
    (tmp_path / "other").touch()
    for name, arguments, status, content in (
        ("dump", (), 0, "whole"),
        ("taken", ("meanwhile",), 1, "of another process"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path / "other", tmp_path / name, *arguments],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        assert (tmp_path / name).read_text() == content
    assert "FileExistsError" in done.stderr
    assert (tmp_path / "dump").stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["dump", "other", "taken"]
