"""A full backup that does not fit into its repository is refused before it begins, and no other one is."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from observatory.backups import space
from observatory.backups.space import LEAST_FREE_BYTES, RESERVE_BYTES, check_room
from observatory.backups.tool import Backup, BackupError, BackupType, RepositoryUnwritableError

MIB = 2**20
DATABASE = 1000 * MIB  # a quarter of it in a backup


def backup(repository: int, day: int = 1, *, kind: BackupType = BackupType.FULL, stored: int = DATABASE // 4) -> Backup:
    time = datetime(2026, 11, day, tzinfo=UTC)
    return Backup(
        repository=repository,
        label=f"202611{day:02}-000000F",
        type=kind,
        started=time,
        ended=time,
        database_bytes=DATABASE,
        repository_bytes=stored,
        prior=None,
        wal_start="",
        wal_stop="",
        damaged=False,
    )


@dataclass
class Tool:
    """A backup tool with these backups and files; `free` is that of every repository's disk."""

    directory: Path
    backups: list[Backup] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    size: str = str(2 * DATABASE)
    unreadable: tuple[int, ...] = ()
    repositories: tuple[int, ...] = (1, 2)

    def place(self, number: int) -> Path:
        return self.directory / str(number)

    def info(self, number: int) -> list[Backup]:
        if number in self.unreadable:
            raise BackupError("it cannot be read")
        return [each for each in self.backups if each.repository == number]

    def node(self, number: int) -> Any:
        return SimpleNamespace(repository=number, query=lambda _statement: self.size, listing=lambda _path: self.files)


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    for number in ("1", "2"):
        (tmp_path / number).mkdir()
    return Tool(tmp_path)


def is_refused(
    tool: Any, free: int, monkeypatch: pytest.MonkeyPatch, number: int = 1, kind: BackupType = BackupType.FULL
) -> str:
    """Return the refusal of a backup with so many bytes available; empty without one."""
    monkeypatch.setattr(space, "available_bytes", lambda _place: free)
    try:
        check_room(tool, tool.node(number), tool.place(number), kind)
    except RepositoryUnwritableError as error:
        return str(error)
    return ""


def test_a_full_backup_leaves_the_reserve_and_is_estimated_from_the_database_and_the_last_compression(
    tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool.backups = [backup(1, 1, stored=DATABASE), backup(1, 2)]
    needed = DATABASE // 2  # the database has doubled since
    assert not is_refused(tool, needed + RESERVE_BYTES, monkeypatch)
    refused = is_refused(tool, needed + RESERVE_BYTES - 1, monkeypatch)
    assert f"about 500 MiB in backup repository 1 ({tool.place(1)}), and of the 1011 MiB" in refused
    assert "512 MiB stay free for WAL" in refused
    assert "move the repository" in refused


def test_without_an_answer_of_the_server_the_size_is_that_of_the_last_backup(
    tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool.backups, tool.size = [backup(1)], ""
    assert not is_refused(tool, DATABASE // 4 + RESERVE_BYTES, monkeypatch)
    assert "about 250 MiB" in is_refused(tool, DATABASE // 4 + RESERVE_BYTES - 1, monkeypatch)


def test_the_first_backup_of_a_stack_is_not_refused(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_refused(tool, 0, monkeypatch)


@pytest.mark.parametrize("kind", [BackupType.FULL, BackupType.INCREMENTAL])
def test_the_first_backup_of_another_repository_is_refused_only_where_it_cannot_fit(
    kind: BackupType, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool.backups = [backup(1)]
    assert not is_refused(tool, DATABASE // 2 + LEAST_FREE_BYTES, monkeypatch, 2, kind)
    assert "in backup repository 2 (" in is_refused(tool, DATABASE // 2 + LEAST_FREE_BYTES - 1, monkeypatch, 2, kind)


def test_an_incremental_backup_is_not_estimated(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    tool.backups = [backup(1), backup(1, 2, kind=BackupType.INCREMENTAL, stored=1)]
    assert not is_refused(tool, 0, monkeypatch, kind=BackupType.INCREMENTAL)
    assert "about 500 MiB" in is_refused(tool, 0, monkeypatch)  # as the last full one, not as the incremental one


def test_what_an_interrupted_backup_has_left_counts_as_available(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    tool.backups = [backup(1)]
    tool.files = {
        "backup.info": MIB,
        "backup.history/2026/20261101-000000F.manifest.gz": MIB,
        "20261101-000000F/backup.manifest": MIB,
        "20261101-000000F/bundle/1": 300 * MIB,
        "20261102-000000F/backup.manifest.copy": MIB,
        "20261102-000000F/bundle/1": 199 * MIB,
    }
    assert not is_refused(tool, 300 * MIB + RESERVE_BYTES, monkeypatch)
    assert "of the 1011 MiB" in is_refused(tool, 299 * MIB + RESERVE_BYTES, monkeypatch)


def test_a_repository_that_cannot_be_read_or_is_absent_is_left_to_pgbackrest(
    tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool.backups, tool.unreadable = [backup(1), backup(2)], (1, 2)
    assert not is_refused(tool, 0, monkeypatch)
    tool.unreadable = ()
    tool.place(1).rmdir()
    assert not is_refused(tool, 0, monkeypatch)
