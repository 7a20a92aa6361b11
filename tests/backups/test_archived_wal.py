"""Times and timelines in the archived WAL: which transaction a recovery stops before, and when a timeline began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from observatory.backups.archived_wal import ArchivedWal, BaseBackup, TransactionEnd
from observatory.backups.cover import _merged
from observatory.nodes.programs.backup_repository import Archive, Position
from observatory.runtime import Sandbox

SEGMENT = 1 << 20
NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


@dataclass(frozen=True)
class Written(ArchivedWal):
    """WAL whose transactions are known: seconds after noon, by segment."""

    ends: Mapping[Position, Sequence[float]] = field(default_factory=dict)

    def _ends(self, segments: Sequence[Position]) -> list[TransactionEnd]:
        found = [(each, index, time) for each in segments for index, time in enumerate(self.ends.get(each, []))]
        return [TransactionEnd(lsn=each[1] * SEGMENT + 1000 * (i + 1), time=at(time)) for each, i, time in found]

    def _dump(self, segments: Sequence[Position], options: str, select: str = "cat") -> str:
        return ""  # a promotion without the record that has its time


def wal(ends: Mapping[Position, Sequence[float]], histories: dict[int, list[tuple[int, int]]] | None = None) -> Written:
    archive = Archive({each: [1000] for each in ends}, histories or {}, SEGMENT)
    return Written(Sandbox(Path("/none"), Path("/none")), 1, archive, ends)


def backup(timeline: int, segment: int) -> BaseBackup:
    start = (timeline, segment)
    return BaseBackup(label="B", ended=NOON, start=start, stop=segment * SEGMENT + 500, bytes=1, chain=("B",))


@pytest.mark.parametrize("time", [0, 1, 1.5, 9, 30, 39.5, 40, 41, 59.9])
def test_the_transactions_around_a_time_are_found_over_empty_segments(time: float) -> None:
    ends = {(1, number): [number, number + 0.5] if number < 10 or number > 38 else [] for number in range(1, 60)}
    found = wal(ends)
    way = found.way(1, backup(1, 1))
    assert way is not None
    before, after = found.around(way, at(time))
    every = [each for times in ends.values() for each in times]
    assert (after.time if after else None) == next((at(each) for each in every if each > time), None)
    assert (before.time if before else None) == next((at(each) for each in reversed(every) if each <= time), None)
    last = found.last(way)
    assert last is not None
    assert last.time == at(59.5)


ROLLED_BACK = wal(
    {
        (1, 1): [1],
        (1, 2): [2, 3],
        (1, 3): [4],
        (2, 2): [2],  # the copy of what was before the switch
        (2, 3): [],
        (2, 4): [10],
        (2, 5): [12],
    },
    {2: [(1, 2 * SEGMENT + 1500)]},
)


def test_a_timeline_began_with_its_own_first_transaction_and_not_with_one_that_it_inherited() -> None:
    assert ROLLED_BACK.born(1) < at(0)
    assert ROLLED_BACK.born(2) == at(10)


def test_a_timeline_without_wal_has_not_begun() -> None:
    assert wal({(1, 1): [1]}, {2: [(1, SEGMENT)]}).born(2) > at(10**9)


def test_the_oldest_timeline_of_a_new_repository_is_as_old_as_all_its_wal() -> None:
    assert wal({(2, 7): [1]}).born(2) < at(0)
    assert wal({(2, 7): [1]}, {2: [(1, SEGMENT)]}).born(2) < at(0)


def test_a_rolled_back_timeline_stays_a_way_of_its_own() -> None:
    one, two = (ROLLED_BACK.way(timeline, backup(1, 1)) for timeline in (1, 2))
    assert one is not None
    assert two is not None
    assert one.segments == ((1, 1), (1, 2), (1, 3))
    assert two.segments == ((1, 1), (2, 2), (2, 3), (2, 4), (2, 5))
    assert ROLLED_BACK.way(2, backup(1, 3)) is None  # it was made after the switch
    last = ROLLED_BACK.last(one)
    assert not ROLLED_BACK.continues(1, last)


def test_a_timeline_that_ended_by_a_failover_goes_on_in_the_next() -> None:
    found = wal({(1, 1): [1], (1, 2): [2], (2, 2): [2, 9]}, {2: [(1, 2 * SEGMENT + 1500)]})
    way = found.way(1, backup(1, 1))
    assert way is not None
    assert found.continues(1, found.last(way))
    assert not found.continues(2, None)


def test_a_segment_that_cannot_be_read_ends_the_way() -> None:
    found = wal({(1, 1): [1], (1, 3): [3]})
    way = found.way(1, backup(1, 1))
    assert way is not None
    assert way.segments == ((1, 1),)
    assert way.gap == "000000010000000000000002 (missing)"


def test_spans_that_overlap_are_one() -> None:
    assert _merged([(at(5), at(9)), (at(0), at(3)), (at(2), at(4))]) == [(at(0), at(4)), (at(5), at(9))]
