"""Gaps of a repository over its life: which finding a full backup ends, and for how long."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from observatory.nodes.programs.backup_repository import STANZA, Finding, Node, Report, check, metrics, still_open

SEGMENT_BYTES = 16 << 20


def name(timeline: int, number: int) -> str:
    return f"{timeline:08X}{0:08X}{number:08X}"


@dataclass
class Repository:
    """A repository as pgBackRest shows it, its check, and what the checks keep."""

    wal: set[str] = field(default_factory=set)
    histories: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    backups: list[dict[str, Any]] = field(default_factory=list)
    without_manifest: set[str] = field(default_factory=set)
    readable: bool = True
    state: dict[str, Any] = field(default_factory=dict)

    def run(self, argv: Sequence[str]) -> tuple[int, str]:
        if "info" in argv and not self.readable:
            return 1, "unable to open the repository"
        if "info" in argv:
            database = {"id": 1, "version": "17", "system-id": 7}
            return 0, json.dumps([{"status": {"code": 0}, "db": [database], "backup": self.backups}])
        if "repo-ls" in argv:
            files = self.archive() if argv[-1] == "archive" else self.manifests()
            return 0, json.dumps({f"{STANZA}/{each}": {"type": "file", "size": 1000} for each in files})
        if "repo-get" in argv:
            history = self.histories[int(argv[-1][-16:-8], 16)]
            return 0, "".join(f"{parent}\t0/{number * SEGMENT_BYTES:X}\tpromoted\n" for parent, number in history)
        return 1, ""

    def archive(self) -> list[str]:
        segments = [f"17-1/{each[:16]}/{each}-{'a' * 40}.zst" for each in self.wal]
        return [
            "archive.info",
            "archive.info.copy",
            *segments,
            *(f"17-1/{each:08X}.history" for each in self.histories),
        ]

    def manifests(self) -> list[str]:
        labels = {each["label"] for each in self.backups} - self.without_manifest
        return ["backup.info", "backup.info.copy", *(f"{each}/backup.manifest" for each in labels)]

    def write(self, timeline: int, first: int, last: int) -> None:
        self.wal |= {name(timeline, number) for number in range(first, last + 1)}

    def lose(self, timeline: int, *numbers: int) -> None:
        self.wal -= {name(timeline, number) for number in numbers}

    def back_up(self, label: str, timeline: int, number: int, *, time: float, base: str | None = None) -> None:
        """Make a backup in one segment: a full one without a base."""
        self.backups.append(
            {
                "label": label,
                "type": "incr" if base else "full",
                "reference": [base] if base else None,
                "database": {"id": 1},
                "timestamp": {"start": time, "stop": time},
                "archive": {"start": name(timeline, number), "stop": name(timeline, number)},
                "lsn": {"stop": f"0/{number * SEGMENT_BYTES + 100:X}"},
            }
        )

    def expire(self, *labels: str) -> None:
        """Remove backups, and the WAL before the oldest that stays."""
        self.backups = [each for each in self.backups if each["label"] not in labels]
        oldest = self.backups[0]["archive"]["start"]
        self.wal = {each for each in self.wal if each >= oldest}

    def report(self) -> Report:
        return check(Node(1, self.run, ("pgbackrest",), ("psql",), ("pg_controldata",)))

    def found(self, *, now: float) -> list[str]:
        """Check, and return the findings that are open."""
        findings, self.state = still_open({1: self.report()}, json.loads(json.dumps(self.state)), now=now)
        return [each.text for each in findings]


@pytest.fixture
def mended() -> Repository:
    """Segments 12 and 15 were lost after A, and B was made since."""
    repository = Repository()
    repository.write(1, 10, 20)
    repository.back_up("A", 1, 10, time=100)
    repository.lose(1, 12, 15)
    assert len(repository.found(now=200)) == 1
    repository.back_up("B", 1, 20, time=300)
    assert repository.found(now=400) == []
    return repository


def test_a_mended_gap_stays_mended_when_another_one_expires(mended: Repository) -> None:
    mended.back_up("A2", 1, 14, time=150)
    mended.backups.sort(key=lambda each: each["label"])
    mended.expire("A")
    assert name(1, 12) not in mended.report().findings[-1].text
    assert mended.found(now=500) == []
    mended.lose(1, 18)
    assert name(1, 18) in mended.found(now=600)[0]


def test_a_mended_gap_stays_mended_after_a_rollback_to_before_it_and_its_undo(mended: Repository) -> None:
    mended.histories[2] = [(1, 11)]
    mended.write(2, 11, 13)
    assert "of a timeline that was left" in mended.report().findings[0].text
    assert mended.found(now=500) == []
    mended.histories[3] = [(1, 21)]
    mended.write(3, 21, 22)
    assert "that a restore needs" in mended.report().findings[0].text
    assert mended.found(now=600) == []


def test_a_gap_is_open_again_if_the_backup_that_mended_it_is_on_a_timeline_that_was_left() -> None:
    """After the undo no backup can be restored to the present."""
    repository = Repository()
    repository.write(1, 10, 20)
    repository.back_up("A", 1, 10, time=100)
    repository.lose(1, 15)
    assert len(repository.found(now=200)) == 1
    repository.histories[2] = [(1, 12)]
    repository.write(2, 12, 14)
    repository.back_up("D", 2, 13, time=300)
    assert repository.found(now=400) == []
    repository.histories[3] = [(1, 20)]
    repository.write(3, 20, 21)
    assert f"that a restore needs: {name(1, 15)}" in repository.found(now=500)[0]
    repository.back_up("E", 3, 21, time=600)
    assert repository.found(now=700) == []


def test_a_mended_gap_stays_mended_while_the_repository_or_a_history_cannot_be_read(mended: Repository) -> None:
    mended.readable = False
    assert "cannot be read" in mended.found(now=500)[0]
    mended.readable = True
    assert mended.found(now=600) == []
    mended.write(3, 21, 22)
    assert [text[:16] for text in mended.found(now=700)] == ["00000002.history", "00000003.history"]
    mended.histories |= {2: [(1, 21)], 3: [(1, 21)]}
    assert mended.found(now=800) == []


def test_the_oldest_backup_does_not_need_the_history_of_its_own_timeline() -> None:
    """A new repository of a server that has changed its timeline lacks it, and a restore succeeds without it."""
    repository = Repository()
    repository.write(2, 10, 20)
    repository.back_up("B", 2, 11, time=100)
    assert repository.found(now=200) == []
    repository.backups.clear()
    repository.back_up("A", 1, 9, time=100)
    assert any(text.startswith("00000002.history is missing") for text in repository.found(now=300))


def test_a_segment_that_was_put_back_and_is_lost_again_is_found_again(mended: Repository) -> None:
    mended.write(1, 12, 15)
    assert mended.found(now=500) == []
    assert mended.state["first_seen"] == {}
    mended.lose(1, 12)
    assert name(1, 12) in mended.found(now=600)[0]


@pytest.mark.parametrize("number", [1, 2])
def test_the_state_of_an_earlier_version_is_read(mended: Repository, number: int) -> None:
    """Its names are the texts of findings: of this check, or of one before ranges changed."""
    [gap] = mended.report().findings
    prefix = "" if number == 1 else f"repository {number}: "
    scattered = f"{prefix}WAL segments of a timeline that was left: {name(1, 11)} to {name(1, 16)} (missing). More"
    for text in (prefix + gap.text, scattered):
        finding = Finding(**{**asdict(gap), "repository": number})
        report = Report(findings=(finding,), sound={"B": 300.0})
        found, state = still_open({number: report}, {"first_seen": {text: 200.0}}, now=500)
        assert found == []
        assert state["first_seen"] == {f"{prefix}{name(1, each)}": 200.0 for each in (12, 15)}
        assert still_open({3 - number: report}, {"first_seen": {"x": 200.0}}, now=500)[0] == [finding]


def test_the_state_of_an_earlier_version_is_read_where_its_text_does_not_show_all_ranges() -> None:
    repository = Repository()
    repository.write(1, 10, 40)
    repository.lose(1, *range(11, 39, 2))
    repository.back_up("A", 1, 10, time=100)
    repository.back_up("B", 1, 40, time=300)
    [gap] = repository.report().findings
    assert "and 9 more ranges" in gap.text
    repository.state = {"first_seen": {gap.text: 200.0}}
    assert repository.found(now=500) == []


@pytest.mark.parametrize("missing", [((12, 15), (12, 15, 18)), ((12, 15, 18), (12, 15))])
def test_a_segment_that_one_of_two_looks_misses_does_not_bring_a_mended_gap_back(
    mended: Repository, missing: tuple[tuple[int, ...], ...]
) -> None:
    looks = iter(missing)
    whole = {name(1, number) for number in range(10, 21)}
    archive = mended.archive

    def listed() -> list[str]:
        mended.wal = whole - {name(1, number) for number in next(looks)}
        return archive()

    mended.archive = listed  # type: ignore[method-assign]
    assert mended.found(now=500) == []
    assert set(mended.state["first_seen"].values()) == {200}


def test_a_time_of_a_clock_that_was_wrong_does_not_keep_a_gap_open(mended: Repository) -> None:
    mended.backups.pop()
    mended.state = {"first_seen": {name(1, number): 10**9 for number in (12, 15)}}
    assert len(mended.found(now=250)) == 1
    mended.back_up("B", 1, 20, time=300)
    assert mended.found(now=400) == []


def test_a_backup_of_a_clock_that_was_wrong_mends_nothing(mended: Repository) -> None:
    mended.lose(1, 18)
    mended.backups.pop()
    mended.back_up("B", 1, 16, time=10**9)
    assert name(1, 18) in "".join(mended.found(now=250))
    mended.write(1, 18, 18)
    mended.without_manifest = {"A"}
    assert "A/backup.manifest is missing" in mended.found(now=260)[0]


def test_a_backup_of_the_future_is_a_finding_and_not_the_newest() -> None:
    """pgBackRest makes none with an earlier label."""
    repository = Repository()
    repository.write(1, 10, 20)
    repository.back_up("A", 1, 10, time=100)
    repository.back_up("B", 1, 15, time=10**11)
    [finding] = repository.report().findings
    assert finding.text.startswith("B ended in the future: pgBackRest makes no backup before then.")
    assert 'timestamp_seconds{repository="1"} 100\n' in metrics([], {1: repository.report()}, now=200)


def test_a_backup_that_only_another_one_refers_to_is_named() -> None:
    repository = Repository()
    repository.write(1, 10, 20)
    repository.back_up("A", 1, 10, time=100)
    repository.back_up("B2", 1, 15, time=200, base="B")
    [finding] = repository.report().findings
    assert finding.text.startswith("B/backup.manifest is missing")
    assert repository.report().obstacles == {"B2": "B has no manifest"}
