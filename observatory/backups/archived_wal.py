"""The archived WAL of one repository: which segments a recovery reads, and which transactions ended in them.

Names come from the repository's listing, contents from pg_waldump. Segments are read in the temporary directory of a
sandbox that ends with the command: nothing is left behind.
"""

from __future__ import annotations

import re
import shlex
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain

from observatory.backups.target import format_lsn, parse_lsn
from observatory.backups.tool import BackupError
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import BIN, command
from observatory.nodes.programs.backup_repository import Archive, Position
from observatory.runtime import Sandbox

STEP = 4  # segments that are read at once in search of a transaction
DIRECTORY = "/tmp/wal"  # noqa: S108 - in the sandbox, and private to the command
RECORD = re.compile(r"lsn: ([0-9A-F]+/[0-9A-F]+)")
END = re.compile(
    r"lsn: ([0-9A-F]+/[0-9A-F]+), .*?desc: (?:COMMIT|ABORT)(?:_PREPARED \d+:)? (\d+-\d+-\d+ \d+:\d+:\d+\.\d+) UTC"
)


PROMOTED = re.compile(r"desc: END_OF_RECOVERY .*?time (\d+-\d+-\d+ \d+:\d+:\d+\.\d+) UTC")


@dataclass(frozen=True, kw_only=True)
class TransactionEnd:
    """The record of a commit or an abort: its first byte in the WAL, and its time in UTC."""

    lsn: int
    time: datetime


@dataclass(frozen=True, kw_only=True)
class BaseBackup:
    """A backup that a recovery can begin with.

    Attributes:
        label: its name.
        ended: the first whole second after its end, in UTC.
        start: its first WAL segment.
        stop: the byte of the WAL at which it ended, and from which on it is consistent.
        bytes: size of the restored database.
        chain: its own label, and those of the backups that it builds on.
    """

    label: str
    ended: datetime
    start: Position
    stop: int
    bytes: int
    chain: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Way:
    """The segments that a recovery to the end of a timeline reads, up to the first that it cannot read.

    Attributes:
        timeline: its number.
        segments: in the order of the WAL.
        gap: the segment that cannot be read, and why, as text; empty where `segments` goes to the end of the archive.
    """

    timeline: int
    segments: tuple[Position, ...]
    gap: str


@dataclass(frozen=True)
class ArchivedWal:
    """The WAL of the newest database system in a repository."""

    sandbox: Sandbox
    repository: int
    archive: Archive

    @property
    def timelines(self) -> list[int]:
        """The timelines of which there is WAL or a history, oldest first."""
        return sorted({each for each, _ in self.archive.files} | set(self.archive.histories))

    def way(self, timeline: int, backup: BaseBackup) -> Way | None:
        """Return the way from a backup to the end of a timeline; None if no recovery leads from it to there."""
        archive = self._until(timeline)
        start = backup.start
        if archive.timeline != timeline or archive.is_left(start[0], backup.stop):
            return None
        wanted = [
            (each, number)
            for each, span in archive.spans().items()
            for number in span
            if each >= start[0] and number >= start[1]
        ]
        readable = next((index for index, each in enumerate(wanted) if archive.problem(each)), len(wanted))
        gap = archive.describe(wanted[readable : readable + 1]) if readable < len(wanted) else ""
        return Way(timeline=timeline, segments=tuple(wanted[:readable]), gap=gap)

    def born(self, timeline: int) -> datetime:
        """Return when a timeline began, or at the latest.

        That of a timeline without WAL is the end of all time, and that of the oldest one the beginning.
        """
        own = [each for each in sorted(self.archive.files) if each[0] == timeline]
        history = self.archive.histories.get(timeline)
        if not own:
            return datetime.max.replace(tzinfo=UTC)
        if not history or own[0][1] > history[-1][1] // self.archive.segment_bytes:
            return datetime.min.replace(tzinfo=UTC)
        if found := PROMOTED.search(self._dump(own[:1], "--rmgr=XLOG")):
            return _utc(found[1])
        ends = (each.time for each in self._ends_from(own) if each.lsn >= history[-1][1])
        return next(ends, datetime.max.replace(tzinfo=UTC))

    def continues(self, timeline: int, last: TransactionEnd | None) -> bool:
        """Return whether all transactions of a timeline, up to the `last`, are also on the next one."""
        following = next((each for each in self.timelines if each > timeline), None)
        history = dict(self.archive.histories.get(following, [])) if following else {}
        return timeline in history and (last is None or last.lsn < history[timeline])

    def around(self, way: Way, time: datetime) -> tuple[TransactionEnd | None, TransactionEnd | None]:
        """Return the last transaction of a way that ended at a time or before, and the first one that ended after it.

        The first is None also where it ended before the way begins.
        """
        segments = way.segments
        index = bisect_left(range(len(segments)), x=True, key=lambda each: self._is_later(segments[each:], time))
        before = None
        for each in chain(self._ends(segments[max(0, index - 1) : index + 1]), self._ends_from(segments[index:])):
            if each.time > time:
                return before, each
            before = each
        return before, None

    def begun(self, way: Way) -> int:
        """Return the byte of WAL at which the timeline of a way left its parent; 0 where it has none."""
        history = self.archive.histories.get(way.timeline)
        return history[-1][1] if history else 0

    def last(self, way: Way) -> TransactionEnd | None:
        """Return the last transaction of a way."""
        for stop in range(len(way.segments), 0, -STEP):
            if ends := self._ends(way.segments[max(0, stop - STEP - 1) : stop]):
                return ends[-1]
        return None

    def last_record(self, segments: Sequence[Position]) -> int | None:
        """Return the first byte of the last record that ends in consecutive segments; None if none does."""
        found = RECORD.findall(self._dump(segments, "", "tail -n 1"))
        return parse_lsn(found[0]) if found else None

    def record_at(self, segments: Sequence[Position], lsn: int) -> int | None:
        """Return the first byte of the first record at `lsn` or later in consecutive segments; None if none ends there.

        The first segment contains `lsn`.
        """
        found = RECORD.findall(self._dump(segments, f"--start={format_lsn(lsn)} --limit=1"))
        return parse_lsn(found[0]) if found else None

    def _until(self, timeline: int) -> Archive:
        """Return what was archived when a timeline was the newest."""
        return replace(
            self.archive,
            files={each: sizes for each, sizes in self.archive.files.items() if each[0] <= timeline},
            histories={each: history for each, history in self.archive.histories.items() if each <= timeline},
            ends=tuple(each for each in self.archive.ends if each[0] <= timeline),
        )

    def _is_later(self, segments: Sequence[Position], time: datetime) -> bool:
        """Return whether the first transaction that ended in consecutive segments did so after a time."""
        first = next(self._ends_from(segments), None)
        return first is None or first.time > time

    def _ends_from(self, segments: Sequence[Position]) -> Iterator[TransactionEnd]:
        """Yield the ends of transactions in consecutive segments, and read no more of them than is needed."""
        start, size, seen = 0, 1, -1
        while start < len(segments):
            for each in self._ends(segments[start : start + size + 1]):  # a record may end in the segment after its own
                if each.lsn > seen:
                    seen = each.lsn
                    yield each
            start, size = start + size, STEP

    def _ends(self, segments: Sequence[Position]) -> list[TransactionEnd]:
        found = (END.search(line) for line in self._dump(segments, "--rmgr=Transaction").splitlines())
        return [TransactionEnd(lsn=parse_lsn(each[1]), time=_utc(each[2])) for each in found if each]

    def _dump(self, segments: Sequence[Position], options: str, select: str = "cat") -> str:
        """Return the records of consecutive segments as pg_waldump writes them.

        Where a timeline begins, its segment takes the name that the next one of its parent would have: a record may
        begin in one and end in the other.

        Raises:
            BackupError: a segment cannot be read.
        """
        if not segments:
            return ""
        (timeline, first), (_, last), size = segments[0], segments[-1], self.archive.segment_bytes
        fetch = command(Paths(), f"--repo={self.repository}", "archive-get")
        names = [(self.archive.name(each), self.archive.name((timeline, each[1]))) for each in segments]
        fetches = [shlex.join([*fetch, name, f"{DIRECTORY}/{alias}"]) for name, alias in names]
        # Without an end it would wait five seconds for a further segment.
        ends = f"--path={DIRECTORY} --timeline={timeline} --end={format_lsn((last + 1) * size)}"
        start = "" if "--start" in options else f"--start={format_lsn(first * size)}"
        script = [
            f"mkdir {DIRECTORY} || exit 1",
            *(f"{each} >/tmp/output || {{ cat /tmp/output; exit 1; }}" for each in fetches),
            f"{BIN}/pg_waldump {ends} {start} {options} 2>/tmp/errors | {select}",
        ]
        done = self.sandbox.run(["/bin/sh", "-c", "\n".join(script)], env={"TZ": "UTC"}, check=False)
        if done.returncode:
            what = f"WAL segments {names[0][0]} to {names[-1][0]} of repository {self.repository}"
            raise BackupError(f"{what} cannot be read:\n{(done.stdout + done.stderr).strip()}")
        return done.stdout


def _utc(text: str) -> datetime:
    return datetime.strptime(f"{text} +0000", "%Y-%m-%d %H:%M:%S.%f %z").astimezone(UTC)
