"""Files are replaced in one step, with the mode that was asked for."""

import os
import socket
from pathlib import Path

import pytest

from observatory.runtime import short_path, write_file


def test_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert write_file(tmp_path / "secret", "s")
        assert write_file(tmp_path / "public", b"p", mode=0o644)
    finally:
        os.umask(before)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "public").stat().st_mode & 0o777 == 0o644


def test_an_unchanged_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, "one")
    inode = path.stat().st_ino
    assert not write_file(path, "one")
    assert path.stat().st_ino == inode
    assert write_file(path, "two")
    assert write_file(path, "two", mode=0o640)
    assert path.read_text() == "two"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(IsADirectoryError):
        write_file(tmp_path / "target", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_short_path_reaches_deep_sockets(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with short_path(deep) as alias, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{alias}/socket")
    assert (deep / "socket").is_socket()
