"""The rules by which a repository is judged: gaps by segment name, timelines, expiry, and findings that stay open."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from observatory.backups.pgbackrest import _has_segment
from observatory.nodes.programs.backup_repository import (
    DAY_S,
    Archive,
    Finding,
    Node,
    Report,
    WaitingWal,
    _gaps,
    expiry,
    metrics,
    position,
    still_open,
    waiting_metrics,
    waiting_wal,
)

MIB = 1 << 20
GAP = Finding("archive", "a gap")


def archive(*names: str, segment: int = 16 * MIB, histories: dict[int, list[tuple[int, int]]] | None = None) -> Archive:
    """Return an archive with a file for each name; a name may be given twice, and one with `!` is empty."""
    files: dict[tuple[int, int], list[int]] = {}
    for name in names:
        files.setdefault(position(name, segment), []).append(0 if name.endswith("!") else 1000)
    return Archive(files, histories or {}, segment)


def names(timeline: int, *numbers: int) -> list[str]:
    return [f"{timeline:08X}{number >> 8:08X}{number & 0xFF:08X}" for number in numbers]


def unusable(found: Archive, start: str) -> list[str]:
    return [found.name(each) for each in found.unusable(position(start, found.segment_bytes))]


def test_a_missing_segment_is_found_across_the_end_of_a_log_file() -> None:
    whole = archive(*names(1, *range(0xFD, 0x103)))
    assert unusable(whole, names(1, 0xFD)[0]) == []
    holed = archive(*names(1, 0xFD, 0xFE, 0x100, 0x102))
    assert unusable(holed, names(1, 0xFD)[0]) == ["0000000100000000000000FF", "000000010000000100000001"]
    assert unusable(holed, "000000010000000100000002") == []


@pytest.mark.parametrize(
    ("suffix", "size", "whole"),
    [
        (f"-{'a' * 40}.zst", 1000, True),
        (f"-{'a' * 40}", 1000, True),
        (f"-{'a' * 40}.zst.pgbackrest.tmp", 1000, False),  # a full disk leaves it
        (f"-{'a' * 40}.zst", 0, False),
        (f".partial-{'a' * 40}.zst", 1000, False),
        (".00000028.backup", 1000, False),
    ],
)
def test_only_a_whole_segment_counts_as_archived(suffix: str, size: int, *, whole: bool) -> None:
    segment = names(1, 7)[0]
    info = [{"db": [{"id": 1, "version": "17"}], "status": {"code": 0}}]
    listing = {f"{segment}{suffix}": {"type": "file", "size": size}}

    def run(argv: Sequence[str]) -> tuple[int, str]:
        return 0, json.dumps(info if "info" in argv else listing)

    assert _has_segment(Node(1, run, ("pgbackrest",), (), ()), segment) is whole


def test_the_size_of_a_segment_decides_which_name_follows() -> None:
    small = archive("000000010000000000000FFF", "000000010000000100000000", segment=MIB)
    assert unusable(small, "000000010000000000000FFF") == []
    large = archive("000000010000000000000003", "000000010000000100000000", segment=1024 * MIB)
    assert unusable(large, "000000010000000000000003") == []


def test_the_newest_segments_are_missed_where_postgresql_has_archived_them() -> None:
    found = archive(*names(1, 1, 2))
    assert unusable(Archive(found.files, {}, 16 * MIB, ends=((1, 4),)), names(1, 1)[0]) == names(1, 3, 4)


def test_a_new_timeline_begins_in_the_segment_where_it_left_its_parent() -> None:
    histories = {2: [(1, 3 * 16 * MIB + 100)], 3: [(1, 3 * 16 * MIB + 100), (2, 5 * 16 * MIB)]}
    found = archive(*names(1, 1, 2), *names(2, 3, 4), *names(3, 5, 6), histories=histories)
    assert unusable(found, names(1, 1)[0]) == []
    assert unusable(archive(*names(1, 1), *names(2, 4), *names(3, 6), histories=histories), names(1, 1)[0]) == [
        *names(1, 2),
        *names(2, 3),
        *names(3, 5),
    ]
    assert not found.is_left(1, 3 * 16 * MIB)
    assert found.is_left(1, 4 * 16 * MIB)
    assert found.is_left(9, 1)


def test_every_history_between_a_backup_and_the_newest_timeline_is_needed() -> None:
    """PostgreSQL probes for the next history until one is absent, and ends there without an error."""
    histories = {3: [(1, 3 * 16 * MIB), (2, 5 * 16 * MIB)]}
    found = archive(*names(1, 1, 2), *names(2, 3, 4), *names(3, 5), histories=histories)
    assert found.unknown_timelines(1) == [2]
    assert found.unknown_timelines(3) == []
    assert archive(*names(2, 3)).unknown_timelines(1) == [2]
    assert archive(*names(1, 3)).unknown_timelines(1) == []


def test_a_gap_of_a_timeline_that_a_rollback_left_is_found() -> None:
    """Timeline 3 left timeline 1 in segment 3, and timeline 2 is not on the way to it."""
    histories = {2: [(1, 3 * 16 * MIB)], 3: [(1, 3 * 16 * MIB)]}
    whole = archive(*names(1, *range(1, 7)), *names(2, 3, 4, 5), *names(3, 3, 4), histories=histories)
    assert list(_gaps(whole, [(1, 1)], [(1, 1)])) == []
    holed = archive(*names(1, 1, 2, 3, 6), *names(2, 3, 5), *names(3, 3, 4), histories=histories)
    [finding] = _gaps(holed, [(1, 1)], [(1, 1)])
    first, last, other = *names(1, 4, 5), *names(2, 4)
    assert f"a timeline that was left: {first} to {last} (missing), {other} (missing)" in finding.text


def test_segments_are_described_by_range_and_problem() -> None:
    found = archive(*names(1, 1, 6, 6, 8), *(f"{name}!" for name in names(1, 5)))
    bad = found.unusable((1, 1))
    assert found.describe(bad) == (
        "000000010000000000000002 to 000000010000000000000004 (missing), 000000010000000000000005 (empty), "
        "000000010000000000000006 (stored twice), 000000010000000000000007 (missing)"
    )
    scattered = archive(*names(1, *range(1, 30, 2)))
    assert scattered.describe(scattered.unusable((1, 1))).endswith("and 9 more ranges")


def full(label: str, *, day: float) -> dict[str, Any]:
    place = {"database": {"id": 1}, "archive": {"start": names(1, 1)[0]}}
    return {"label": label, "type": "full", "timestamp": {"start": day * DAY_S, "stop": day * DAY_S}, **place}


MADE = [full("A", day=0), full("B", day=15), full("C", day=45), full("D", day=90)]


@pytest.mark.parametrize(
    ("sound", "today", "kept"),
    [
        ("ABCD", 91, 2),  # C is the newest that is 30 days old
        ("ABCD", 74, 3),
        ("A", 1000, 4),  # nothing sound was made since A
        ("AD", 100, 4),  # D is sound, but too young for a restore to a month ago
        ("AD", 121, 1),
        ("", 1000, None),
        ("ABCD", 29, None),
    ],
)
def test_only_sound_backups_count_for_the_retention(sound: str, today: float, kept: int | None) -> None:
    report = Report(sound=dict.fromkeys(sound, 0.0), leading={(1, 1): tuple("ABCD")})
    assert expiry(report, MADE, days=30, now=today * DAY_S) == kept


def test_a_gap_stays_a_finding_until_a_sound_full_backup_is_made_after_it_was_found() -> None:
    found, state = still_open({1: Report(findings=(GAP,), sound={"A": 50.0})}, {}, now=100)
    assert found == [GAP]
    found, state = still_open({1: Report(findings=(GAP,), sound={"A": 50.0})}, state, now=1000)
    assert found == [GAP]
    found, state = still_open({1: Report(findings=(GAP,), sound={"A": 50.0, "B": 200.0})}, state, now=1100)
    assert found == []
    another = Finding("archive", "another gap")
    found, state = still_open({1: Report(findings=(GAP, another), sound={"B": 200.0})}, state, now=1200)
    assert found == [another]


def test_damage_in_files_is_a_finding_until_the_next_check_of_the_contents_or_a_new_full_backup() -> None:
    state = {"contents": [{"kind": "backup", "text": "a bundle", "mended": True}]}
    found, state = still_open({1: Report(sound={"A": 50.0})}, state, now=100)
    assert [each.text for each in found] == ["a bundle"]
    assert still_open({1: Report(sound={"B": 101.0})}, state, now=102)[0] == []
    assert still_open({1: Report(sound={"A": 50.0})}, {**state, "contents": []}, now=102)[0] == []


def test_findings_are_counted_by_kind_in_the_metrics() -> None:
    findings = [GAP, Finding("backup", "x"), GAP, Finding("archive", "y", repository=2)]
    text = metrics(findings, {1: Report(newest=7), 2: Report(readable=False)}, now=5)
    assert 'observatory_archive_gaps{repository="1"} 2\nobservatory_archive_gaps{repository="2"} 1\n' in text
    assert '\nobservatory_backups_damaged{repository="1"} 1\n' in text
    assert '\nobservatory_backup_last_completion_timestamp_seconds{repository="1"} 7\n' in text
    assert '\nobservatory_backup_repository_readable{repository="2"} 0\n' in text


def test_the_same_finding_in_two_repositories_ends_with_a_full_backup_in_each() -> None:
    other = replace(GAP, repository=2)
    found, state = still_open({1: Report((GAP,)), 2: Report((other,))}, {}, now=100)
    assert found == [GAP, other]
    found, _ = still_open({1: Report((GAP,), sound={"B": 101.0}), 2: Report((other,))}, state, now=102)
    assert found == [other]


def test_wal_that_waits_is_measured_with_the_time_until_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Histories and files that were archived meanwhile do not count."""
    status = tmp_path / "archive_status"
    status.mkdir()
    assert waiting_wal(tmp_path, now=1000) == WaitingWal()
    for number, name in enumerate(names(1, 1, 2)):
        (tmp_path / name).write_bytes(b"x" * 500)
        (status / f"{name}.ready").touch()
        os.utime(status / f"{name}.ready", (1000 + number, 1000 + number))
    for name in ("00000002.history.ready", f"{names(1, 3)[0]}.ready", f"{names(1, 1)[0]}.done"):
        (status / name).touch()
    disk = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)  # others write to this disk
    found = waiting_wal(tmp_path, now=1100)
    assert (found.segments, found.bytes, found.since) == (2, 1000, 1000)
    assert found.seconds_left == pytest.approx(disk.f_bavail * disk.f_frsize * 100 / 1000)
    assert "observatory_wal_waiting_bytes 1000\n" in waiting_metrics(found)
    assert waiting_wal(tmp_path, now=1030).seconds_left is None
    assert "observatory_wal_waiting_left_seconds +Inf\n" in waiting_metrics(WaitingWal())
