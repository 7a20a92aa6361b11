"""The journal: one line for each event, readable after a power failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from observatory.documents.journal import TAIL_BYTES, Entry, FileJournal, append, entries, last_entry
from observatory.progress import Phase, Progress


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rollout" / "local.journal.jsonl"


def test_an_event_is_written_reported_and_passed_to_the_listeners(file: Path) -> None:
    reported: list[Progress] = []
    heard: list[Entry] = []
    FileJournal(file, reported.append, [heard.append]).record("shift", weights={"blue": 0}, deployment="d", reason=None)
    (entry,) = entries(file)
    assert heard == [entry]
    assert (entry.event, entry.details) == ("shift", {"weights": {"blue": 0}, "deployment": "d", "reason": None})
    assert [each.task for each in reported] == ["traffic weights: blue 0 %"]


def test_a_file_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "rollout").write_text("not a directory")
    reported: list[Progress] = []
    FileJournal(tmp_path / "rollout" / "journal", reported.append).record("shift")
    assert [each.phase for each in reported] == [Phase.WARNED, Phase.DONE]
    assert "cannot be written" in reported[0].task


def test_a_reporter_that_raises_changes_nothing(file: Path) -> None:
    """As `print` to a pipe whose reader has gone: an error would roll a good deployment back, or stop a rollback."""

    def closed_pipe(_progress: Progress) -> None:
        raise BrokenPipeError

    heard: list[Entry] = []
    FileJournal(file, closed_pipe, [heard.append]).record("shift")
    assert [entry.event for entry in entries(file)] == [entry.event for entry in heard] == ["shift"]
    (file.parent / "closed").write_text("not a directory")
    FileJournal(file.parent / "closed" / "journal", closed_pipe, [heard.append]).record("rollback")
    assert [entry.event for entry in heard] == ["shift", "rollback"]


def test_an_interrupt_during_a_report_is_raised(file: Path) -> None:
    def interrupted(_progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FileJournal(file, interrupted).record("shift")


def test_a_half_written_line_is_skipped_and_ended(file: Path) -> None:
    record(file, "start")
    with file.open("a") as journal:
        journal.write('{"id": "x", "at"')
    with file.open("a+b") as journal:
        append(journal, [Entry(id="y", at=1.0, actor="a@b", event="promoted", details={})])
    assert [entry.event for entry in entries(file)] == ["start", "promoted"]


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "null",
        *(
            f'{{"id": "x", "at": {at}, "actor": "a@b", "event": "shift"}}'
            for at in ("null", '"1"', "NaN", "-1", "1e300")
        ),
        '{"id": "x", "at": 1.0, "actor": "a@b", "event": ["shift"]}',
    ],
)
def test_a_damaged_line_is_skipped(file: Path, line: str) -> None:
    record(file, "start")
    with file.open("a") as journal:
        journal.write(f"{line}\n")
    record(file, "promoted")
    assert [entry.event for entry in entries(file)] == ["start", "promoted"]


def test_the_last_entry_of_an_event_is_found_near_the_end_only(file: Path) -> None:
    assert last_entry(file, "gate") is None
    record(file, "gate", number=1)
    record(file, "gate", number=2)
    record(file, "shift")
    found = last_entry(file, "gate")
    assert found
    assert found.details == {"number": 2}
    record(file, "start", filler="x" * TAIL_BYTES)
    assert last_entry(file, "gate") is None


def record(file: Path, event: str, **details: Any) -> None:
    FileJournal(file, lambda _progress: None).record(event, **details)
