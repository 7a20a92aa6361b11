"""Which backups expire, over random histories of backups, rollbacks and undos of one repository."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from observatory.nodes.programs.backup_repository import DAY_S, Archive, Report, _leading, expiry

HOUR_S = 3600
HOURLY = 1 << 20  # bytes of WAL
SEGMENT = 1 << 20
RETENTION_DAYS = 4
DAY = 24


@dataclass(frozen=True)
class Branch:
    """A timeline: it left `parent` at a byte, and was live from an hour on."""

    parent: int
    left_at: int
    born: int

    def byte(self, hour: float) -> int:
        return self.left_at + int((hour - self.born) * HOURLY)


@dataclass
class Repository:
    """The backups of a server. Its hours are those since its first start; the first timeline has the number 1."""

    branches: list[Branch] = field(default_factory=lambda: [Branch(0, 0, 0)])
    records: list[dict[str, Any]] = field(default_factory=list)
    hour: int = 1

    def live(self, hour: float) -> int:
        return max(number for number, each in enumerate(self.branches, 1) if each.born <= hour)

    def back_up(self, kind: str, *, damaged: bool = False) -> None:
        number = len(self.branches)
        byte = self.branches[-1].byte(self.hour)
        full = next((each for each in reversed(self.records) if each["type"] == "full"), None)
        label = f"{self.hour:06}"
        self.records.append(
            {
                "label": label,
                "type": kind if full else "full",
                "database": {"id": 1},
                "timestamp": {"start": (self.hour - 0.5) * HOUR_S, "stop": self.hour * HOUR_S},
                "archive": {"start": f"{number:08X}{0:08X}{byte // SEGMENT:08X}"},
                "lsn": {"stop": f"{byte >> 32:X}/{byte & 0xFFFFFFFF:X}"},
                "byte": byte,
                "error": damaged or (kind != "full" and bool(full and full["error"])),
                "base": full["label"] if full and kind != "full" else label,
            }
        )
        if not damaged:
            self.expire()

    def leave(self, hour: float) -> None:
        """Go back to an hour: to the timeline that was live then."""
        parent = self.live(hour)
        self.branches.append(Branch(parent, self.branches[parent - 1].byte(hour), self.hour))

    def undo(self) -> None:
        """Return to the end of the timeline that was live before the newest one."""
        if len(self.branches) > 1:
            left = len(self.branches) - 1
            self.branches.append(Branch(left, self.branches[left - 1].byte(self.branches[left].born), self.hour))

    def expire(self) -> None:
        archive = Archive({(1, 0): [1000]}, {n: self.history(n) for n in range(2, len(self.branches) + 1)}, SEGMENT)
        sound = {each["label"]: 0.0 for each in self.records if each["type"] == "full" and not each["error"]}
        report = Report(sound=sound, leading=_leading(self.records, {1: archive}))
        if keep := expiry(report, self.records, days=RETENTION_DAYS, now=self.hour * HOUR_S):
            kept = [each["label"] for each in self.records if each["type"] == "full"][-keep:]
            stay = [each for each in self.records if each["base"] in kept]
            if stay != self.records:
                before, self.records = self.covered(), stay
                assert self.covered() == before

    def history(self, number: int) -> list[tuple[int, int]]:
        if number == 1:
            return []
        branch = self.branches[number - 1]
        return [*self.history(branch.parent), (branch.parent, branch.left_at)]

    def covered(self) -> list[int]:
        """Return the hours within the retention to which a restore can go."""
        hours = range(max(0, self.hour - RETENTION_DAYS * DAY), self.hour + 1)
        return [hour for hour in hours if self.is_covered(hour)]

    def is_covered(self, hour: int) -> bool:
        timeline, byte = self.live(hour), self.branches[self.live(hour) - 1].byte(hour)
        while timeline:
            name = f"{timeline:08X}"
            for each in self.records:
                is_earlier = each["byte"] <= byte and each["timestamp"]["stop"] <= hour * HOUR_S
                if each["archive"]["start"].startswith(name) and is_earlier and not each["error"]:
                    return True
            timeline, byte = self.branches[timeline - 1].parent, self.branches[timeline - 1].left_at
        return False


STEP = st.tuples(
    st.sampled_from(("full", "full", "incr", "damaged", "rollback", "undo")), st.integers(1, 60), st.floats(0, 1)
)
LATER = [("incr", DAY, 0.0)] * (RETENTION_DAYS + 1)


# Rollbacks to before the newest full backup, then daily incremental ones. The second rollback is undone.
@example([("full", 1, 0), ("full", DAY, 0), ("rollback", DAY, 0.25), ("full", DAY, 0), *LATER])
@example([("full", 1, 0), ("full", DAY, 0), ("rollback", DAY, 0.25), ("full", 30, 0), ("undo", 1, 0), *LATER])
@settings(deadline=None)  # of two cores that other tests use
@given(st.lists(STEP, max_size=40))
def test_every_moment_within_the_retention_stays_covered_and_disk_does_not_grow(
    steps: list[tuple[str, int, float]],
) -> None:
    repository = Repository()
    for kind, hours, place in steps:
        repository.hour += hours
        if kind == "rollback":
            repository.leave(max(repository.hour * place, repository.hour - 2 * RETENTION_DAYS * DAY))
        elif kind == "undo":
            repository.undo()
        else:
            repository.back_up("incr" if kind == "incr" else "full", damaged=kind == "damaged")
    for _ in range(2 * RETENTION_DAYS + 2):
        repository.hour += DAY
        repository.back_up("full")
    assert len(repository.records) <= RETENTION_DAYS + 2
    assert repository.records[0]["timestamp"]["stop"] <= (repository.hour - RETENTION_DAYS * DAY) * HOUR_S


def record(label: str, day: float, *, timeline: int = 1, byte: int, database: int = 1) -> dict[str, Any]:
    return {
        "label": label,
        "type": "full",
        "database": {"id": database},
        "timestamp": {"start": day * DAY_S, "stop": day * DAY_S},
        "archive": {"start": f"{timeline:08X}{0:08X}{byte:08X}"},
        "lsn": {"stop": f"0/{byte * SEGMENT:X}"},
    }


def kept(made: list[dict[str, Any]], archives: dict[int, Archive], *, today: float) -> str:
    """Return the labels of the full backups that stay at a retention of 30 days."""
    report = Report(sound={each["label"]: 0.0 for each in made}, leading=_leading(made, archives))
    keep = expiry(report, made, days=30, now=today * DAY_S)
    return "".join(each["label"] for each in (made if keep is None else made[-keep:]))


def test_a_backup_of_a_timeline_that_a_rollback_left_does_not_stand_in_for_an_earlier_one() -> None:
    """On day 12 the database goes back to day 7, before B."""
    archive = Archive({}, {2: [(1, 70 * SEGMENT)]}, SEGMENT)
    made = [record("A", 1, byte=10), record("B", 8, byte=80), record("D", 13, timeline=2, byte=71)]
    assert kept(made, {1: archive}, today=38) == "ABD"
    assert kept(made, {1: archive}, today=42.9) == "ABD"
    assert kept(made, {1: archive}, today=43) == "D"


def test_nothing_expires_while_the_history_of_the_live_timeline_is_unknown() -> None:
    made = [record("A", 1, byte=10), record("B", 8, byte=80), record("D", 13, timeline=2, byte=81)]
    archive = Archive({(2, 81): [1000]}, {}, SEGMENT)
    assert kept(made, {1: archive}, today=42.9) == "ABD"
    assert kept(made, {1: archive}, today=43) == "D"


def test_the_backups_of_an_earlier_database_system_stay_for_the_retention() -> None:
    """Its timelines have the same numbers."""
    archives = {1: Archive({(1, 1): [1000]}, {}, SEGMENT), 2: Archive({(1, 1): [1000]}, {}, SEGMENT)}
    made = [record("A", 1, byte=10), record("B", 8, byte=80), record("C", 9, byte=1, database=2)]
    assert kept(made, archives, today=38) == "ABC"
    assert kept(made, archives, today=39) == "C"


def test_nothing_expires_after_a_pause_that_may_be_a_clock_that_is_ahead() -> None:
    archive = Archive({(1, 0): [1000]}, {}, SEGMENT)
    daily = [record(label, day, byte=day) for day, label in enumerate("ABCDEF", start=1)]
    ahead = [*daily, record("G", 365, byte=7)]
    assert kept(ahead, {1: archive}, today=365) == "ABCDEFG"
    put_right = sorted([*ahead, record("H", 7, byte=8)], key=lambda each: each["timestamp"]["stop"])
    assert kept(put_right, {1: archive}, today=8) == "ABCDEFHG"


def test_backups_from_before_such_a_pause_stay_until_a_full_one_from_after_it_is_older_than_the_retention() -> None:
    archive = Archive({(1, 0): [1000]}, {}, SEGMENT)
    before = [record(label, day, byte=day) for day, label in enumerate("ABCDEF", start=1)]
    made = [*before, record("G", 365, byte=7), record("H", 366, byte=8), record("I", 394, byte=9)]
    assert kept(made[:8], {1: archive}, today=366) == "ABCDEFGH"  # the clock may still be ahead
    assert kept(made, {1: archive}, today=394.9) == "ABCDEFGHI"
    assert kept(made, {1: archive}, today=395) == "GHI"


def test_backups_that_are_always_far_apart_expire() -> None:
    archive = Archive({(1, 0): [1000]}, {}, SEGMENT)
    made = [record(label, 40 * number, byte=number) for number, label in enumerate("ABCD", start=1)]
    assert kept(made, {1: archive}, today=161) == "CD"
