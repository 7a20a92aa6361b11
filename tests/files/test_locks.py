"""Lock files between processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from observatory.files.locks import FileLockHeldError, add_holder, claim, exclusive, holder


def test_a_claimed_lock_names_its_process_and_refuses_another(tmp_path: Path) -> None:
    lock = tmp_path / "new" / "lock"
    with claim(lock):
        assert holder(lock) == os.getpid()
        with pytest.raises(FileLockHeldError, match=rf"is held by process {os.getpid()}"), claim(lock):
            pass
    assert holder(lock) is None
    with claim(lock):
        pass


def test_a_child_that_inherits_a_lock_holds_it_until_it_ends(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with claim(lock) as descriptor:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[descriptor])
        add_holder(descriptor, child.pid)
    assert holder(lock) == child.pid
    with pytest.raises(FileLockHeldError), claim(lock):
        pass
    child.communicate()
    assert holder(lock) is None


def test_an_exclusive_lock_creates_the_directory_and_is_released(tmp_path: Path) -> None:
    for _ in range(2):
        with exclusive(tmp_path / "new" / "lock"):
            pass


def test_no_process_holds_a_lock_that_does_not_exist(tmp_path: Path) -> None:
    assert holder(tmp_path / "none") is None
