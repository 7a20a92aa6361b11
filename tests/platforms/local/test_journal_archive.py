"""The copies of the journal beside the backups: in each repository, wherever it is, and not in place of its disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from observatory.backups.repository_places import MARK, use_places
from observatory.documents.journal import FileJournal, entries
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import repository
from observatory.platforms.local.journal_archive import archive_journal
from observatory.progress import silent
from observatory.runtime import Sandbox


@pytest.fixture
def workspace(tmp_path: Path) -> Any:
    """A stack whose second repository is outside of its home."""
    sandbox = Sandbox(tmp_path / "home", tmp_path / "rootfs")
    (tmp_path / "disk").mkdir(mode=0o700)
    use_places(sandbox, {2: tmp_path / "disk"})
    sandbox.make_directory(repository(Paths(), 1))
    found = SimpleNamespace(sandbox=sandbox, stack="local", journal=tmp_path / "journal.jsonl")
    FileJournal(found.journal, silent).record("one")
    return found


def events(file: Path) -> list[str]:
    return [each.event for each in entries(file)]


def test_each_repository_has_a_copy_also_outside_of_the_home(workspace: Any, tmp_path: Path) -> None:
    archive_journal(workspace)
    FileJournal(workspace.journal, silent).record("two")
    archive_journal(workspace)
    copies = (tmp_path / "home/data/backups/audit/local.jsonl", tmp_path / "disk/audit/local.jsonl")
    assert [events(each) for each in copies] == [["one", "two"]] * 2
    assert [each.stat().st_mode & 0o777 for each in (*copies, copies[1].parent)] == [0o600, 0o600, 0o700]
    assert copies[1].stat().st_uid == copies[0].stat().st_uid == copies[1].parent.stat().st_uid


def test_nothing_is_written_where_the_disk_of_a_repository_is_missing(workspace: Any, tmp_path: Path) -> None:
    (tmp_path / "disk" / MARK).unlink()
    archive_journal(workspace)
    assert list((tmp_path / "disk").iterdir()) == []
    assert events(tmp_path / "home/data/backups/audit/local.jsonl") == ["one"]


def test_a_copy_that_cannot_be_written_is_named_and_the_other_one_is_complete(workspace: Any, tmp_path: Path) -> None:
    (tmp_path / "home/data/backups/audit").mkdir(parents=True)
    (tmp_path / "home/data/backups/audit/local.jsonl").mkdir()
    with pytest.raises(OSError, match="repository 1: "):
        archive_journal(workspace)
    assert events(tmp_path / "disk/audit/local.jsonl") == ["one"]
