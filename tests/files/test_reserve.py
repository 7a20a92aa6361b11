"""A reserve holds space back, and a write that finds the disk full gets it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from observatory.documents.journal import FileJournal, entries
from observatory.files.atomic import write_file
from observatory.files.reserve import NAME, Reserve, with_reserve
from observatory.progress import silent
from tests.support.small_disk import available, fill, small_disk

MIB = 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "40m") as directory:
        yield directory


def test_a_reserve_is_filled_once_and_released(tmp_path: Path) -> None:
    reserve = Reserve(directory=tmp_path, size=MIB)
    assert reserve.keep()
    assert reserve.held() >= MIB
    assert not reserve.keep()
    assert reserve.release()
    assert not reserve.release()
    assert reserve.held() == 0


def test_a_reserve_takes_a_small_part_of_a_small_disk_and_waits_for_room(disk: Path) -> None:
    reserve = Reserve(directory=disk, size=100 * MIB)
    assert reserve.keep()
    assert reserve.held() <= 2 * MIB
    fill(disk / "filler")
    assert reserve.is_low()
    assert reserve.release()
    assert not reserve.is_low()
    assert not reserve.keep()
    (disk / "filler").unlink()
    assert reserve.keep()


def test_a_document_is_written_to_a_full_disk(disk: Path) -> None:
    file = disk / "rollout/local.json"
    file.parent.mkdir()
    Reserve(directory=disk, size=MIB).keep()
    fill(disk / "filler")
    with pytest.raises(OSError, match="No space left"):
        write_file(file, "x" * 10_000)
    assert list(file.parent.iterdir()) == []
    assert write_file(file, "x" * 10_000, essential=True)
    assert file.stat().st_size == 10_000
    assert not (disk / NAME).exists()
    assert available(disk) > MIB // 2


def test_the_journal_is_written_to_a_full_disk(disk: Path) -> None:
    Reserve(directory=disk, size=MIB).keep()
    fill(disk / "filler")
    FileJournal(disk / "journal.jsonl", silent).record("shift", deployment="d1")
    assert [entry.event for entry in entries(disk / "journal.jsonl")] == ["shift"]


def test_a_full_disk_without_a_reserve_is_an_error(tmp_path: Path) -> None:
    calls = []

    def write() -> None:
        calls.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        with_reserve(tmp_path / "file", write)
    assert len(calls) == 1


def test_another_error_releases_nothing(tmp_path: Path) -> None:
    reserve = Reserve(directory=tmp_path, size=MIB)
    reserve.keep()

    def write() -> None:
        raise OSError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        with_reserve(tmp_path / "file", write)
    assert reserve.held()
