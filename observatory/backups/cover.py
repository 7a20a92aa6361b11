"""Which backup and which WAL bring back a target, found before anything is touched.

A recovery whose target is after the last archived WAL fails only after all the replay, or never ends. So its end is
found in the WAL first: the last transaction that ended at a time or before, and the next one, are read from the
archive, and the recovery stops right after the former.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from observatory.backups.archived_wal import BaseBackup, TransactionEnd, Way
from observatory.backups.pgbackrest import SWITCH, PgBackRest
from observatory.backups.repository_contents import (
    RepositoryContents,
    UncoveredTargetError,
    check_configured,
    configured_repositories,
)
from observatory.backups.space import RESERVE_BYTES, available_bytes
from observatory.backups.target import RecoveryTarget, format_time
from observatory.backups.tool import BackupError
from observatory.errors import REFUSED
from observatory.interruption.parallel import in_parallel
from observatory.nodes.programs.backup_repository import Position
from observatory.runtime import RuntimeFault, Sandbox
from observatory.waiting import wait_until

# For estimates, as measured on two cores: docs/benchmarks-backups.md.
RESTORED_BYTES_PER_S = 125_000_000
REPLAYED_SEGMENTS_PER_S = 3.5
START_S = 3
SPARE_BYTES = 64 << 20
REPLAYED_BYTES = 1 << 30  # of WAL that a recovery keeps at most: max_wal_size
ARCHIVE_TIMEOUT_S = 60
LAG_S = 5  # of a repository behind another one
SHOWN = 5  # spans of time that a message names
TAIL = 4  # segments in which the last record of the archive is searched


class NotEnoughSpaceError(RuntimeFault):
    """The disk is too small for a restored database; nothing was changed."""

    exit_code = REFUSED


@dataclass(frozen=True, kw_only=True)
class Cover:
    """A backup and the WAL by which a target is reached.

    Attributes:
        target: that it was found for.
        repository: number of the repository.
        label: of the backup.
        timeline: that the recovery follows.
        backup_timeline: that the backup was made on.
        stop: where the recovery stops, as a byte of the WAL.
        inclusive: whether the record at `stop` is still replayed; otherwise the recovery stops before it.
        segments: names of the first and the last WAL segment that are replayed.
        replayed: number of these segments.
        database_bytes: size of the restored database.
        needed_bytes: that the restore takes on the disk.
        estimated_s: of the restore and the replay, in seconds.
    """

    target: RecoveryTarget
    repository: int
    label: str
    timeline: int
    backup_timeline: int
    stop: int
    inclusive: bool
    segments: tuple[str, str]
    replayed: int
    database_bytes: int
    needed_bytes: int
    estimated_s: float


def find_cover(
    sandbox: Sandbox, target: RecoveryTarget, *, repository: int | None = None, archived_only: bool = False
) -> Cover:
    """Return by which backup and which WAL a target is reached, with the least to replay.

    A running server archives its newest WAL first, where the target needs it.

    Args:
        sandbox: of the stack, which need not be up.
        target: of the restore.
        repository: number of the only repository to use; None: any.
        archived_only: accept a newest state without the WAL that cannot be archived, as a drill does.

    Raises:
        UncoveredTargetError: no backup leads to the target; the message says what is covered.
        NotEnoughSpaceError: the disk is too small.
    """
    if target.time and target.time > datetime.now(UTC):
        raise UncoveredTargetError(f"{target} is in the future", remedy="Give an earlier time.")
    if repository is not None:
        check_configured(sandbox, repository)
    numbers = configured_repositories(sandbox) if repository is None else [repository]
    contents = [RepositoryContents(sandbox, each) for each in numbers]
    ended = _archive_newest(sandbox, contents) if target.kind == "latest" else None
    found, reasons = _search(contents, target)
    if not found and target.kind in {"time", "lsn"} and (ended := _archive_newest(sandbox, contents)):
        found, reasons = _search(contents, target)
    if ended and not any(each.is_usable and each.has_segment(ended) for each in contents):
        reasons.append(f"WAL segment {ended} was not archived within {ARCHIVE_TIMEOUT_S} s, see `observatory status`")
        if target.kind == "latest" and not archived_only:
            found = []  # the newest state is not in the archive
    if not found:
        covered = "; ".join(f"repository {each.number}: {_described(each)}" for each in contents)
        raise UncoveredTargetError(f"no backup leads to {target}: {'; '.join(reasons)}", remedy=f"Covered: {covered}.")
    best = min(found, key=partial(_preference, newest=target.kind == "latest"))
    _check_space(sandbox, best)
    return best


def _preference(cover: Cover, *, newest: bool) -> tuple[int, ...]:
    """Return a cover's rank: the least to replay, but the newest state first where one repository lags behind."""
    return (-cover.timeline, -cover.stop, cover.replayed) if newest else (cover.replayed,)


def _search(contents: Sequence[RepositoryContents], target: RecoveryTarget) -> tuple[list[Cover], list[str]]:
    """Return the cover of each repository that has one, and why the others have none."""
    results = in_parallel(partial(_cover_or_reason, target=target), contents)
    return [each for each in results if isinstance(each, Cover)], [each for each in results if isinstance(each, str)]


def _cover_or_reason(contents: RepositoryContents, target: RecoveryTarget) -> Cover | str:
    try:
        return _FINDERS[target.kind](contents, target)
    except (UncoveredTargetError, BackupError) as error:
        return f"repository {contents.number}: {error.args[0]}"


def _of_label(contents: RepositoryContents, target: RecoveryTarget) -> Cover:
    backup = next((each for each in contents.backups if each.label == target.label), None)
    if backup is None:
        raise UncoveredTargetError("it has no such backup, or a damaged one")
    way = contents.wal.way(backup.start[0], backup)
    last = _number(contents, backup.stop - 1)
    if way is None or not any(number == last for _, number in way.segments):
        raise UncoveredTargetError(f"WAL of the backup itself is missing: {way.gap if way else 'all'}")
    if lost := contents.missing(backup):
        raise UncoveredTargetError(f"{lost} is missing or truncated")
    return _cover(contents, target, backup, way, stop=backup.stop, last=last)


def _of_latest(contents: RepositoryContents, target: RecoveryTarget) -> Cover:
    timeline = contents.wal.timelines[-1]
    for backup, way in _ways(contents, timeline):
        if way.gap:
            raise UncoveredTargetError(f"the archive has a gap: {way.gap}")
        record = contents.wal.last_record(way.segments[-TAIL:])
        if record is None:
            raise UncoveredTargetError(f"no record ends in the last {TAIL} WAL segments")
        return _cover(contents, target, backup, way, stop=record, last=way.segments[-1][1], inclusive=True)
    raise UncoveredTargetError(f"no backup leads to timeline {timeline}")


def _of_lsn(contents: RepositoryContents, target: RecoveryTarget) -> Cover:
    stop = target.lsn or 0
    timeline = target.timeline or contents.wal.timelines[-1]
    number = _number(contents, stop)
    for backup, way in _ways(contents, timeline, lambda each: each.stop <= stop):
        rest = [each for each in way.segments if each[1] >= number][:2]
        if not rest or rest[0][1] != number or contents.wal.record_at(rest, stop) is None:
            raise UncoveredTargetError(_end_of(way, _last_segment(contents, way)))
        return _cover(contents, target, backup, way, stop=stop, last=rest[-1][1])
    raise UncoveredTargetError("no whole backup ended before it")


def _of_time(contents: RepositoryContents, target: RecoveryTarget) -> Cover:
    time = target.time or datetime.now(UTC)
    timelines = contents.wal.timelines
    # The newest that had begun. Others between may have no transaction of their own: a rollback promotes twice.
    first = max((index for index, each in enumerate(timelines) if contents.born(each) <= time), default=0)
    for timeline in timelines[first:]:
        backup, way = next(_ways(contents, timeline, lambda each: each.ended <= time), (None, None))
        if backup is None or way is None:
            raise UncoveredTargetError(f"no whole backup on the way to timeline {timeline} ended before it")
        last, later = contents.wal.around(way, time)
        if later or (last and last.time == time):
            return _after(contents, target, backup, way, last)
        if way.gap or not contents.wal.continues(timeline, last):
            raise UncoveredTargetError(_end_of(way, format_time(last.time) if last else "its start"))
    raise UncoveredTargetError("no transaction ended later in the archive")


def _after(
    contents: RepositoryContents, target: RecoveryTarget, backup: BaseBackup, way: Way, last: TransactionEnd | None
) -> Cover:
    """Return the cover whose recovery stops right after the last transaction, and as early without one.

    Not before the next one: the files of a dropped database are gone before the transaction that drops it ends.
    """
    # It stops on the timeline of the way: the next timeline, of a promotion, has this one as its parent.
    stop, inclusive = max((last.lsn if last else 0, True), (contents.wal.begun(way), True), (backup.stop, False))
    return _cover(contents, target, backup, way, stop=stop, last=_number(contents, stop) + 1, inclusive=inclusive)


_FINDERS: dict[str, Callable[[RepositoryContents, RecoveryTarget], Cover]] = {
    "label": _of_label,
    "latest": _of_latest,
    "lsn": _of_lsn,
    "time": _of_time,
}


def _ways(
    contents: RepositoryContents, timeline: int, accepted: Callable[[BaseBackup], bool] = lambda _: True
) -> Iterator[tuple[BaseBackup, Way]]:
    """Yield the whole backups from which a recovery leads to the end of a timeline, the newest first."""
    for backup in contents.backups:
        way = contents.wal.way(timeline, backup) if backup.start[0] <= timeline and accepted(backup) else None
        if way and not contents.missing(backup):
            yield backup, way


def _cover(
    contents: RepositoryContents,
    target: RecoveryTarget,
    backup: BaseBackup,
    way: Way,
    *,
    stop: int,
    last: int,
    inclusive: bool = False,
) -> Cover:
    """Return the cover by a backup and the segments of a way up to the number `last`."""
    segments = [each for each in way.segments if each[1] <= last]
    wal = len(segments) * contents.wal.archive.segment_bytes
    return Cover(
        target=target,
        repository=contents.number,
        label=backup.label,
        timeline=way.timeline,
        backup_timeline=backup.start[0],
        stop=stop,
        inclusive=inclusive,
        segments=(contents.wal.archive.name(segments[0]), contents.wal.archive.name(segments[-1])),
        replayed=len(segments),
        database_bytes=backup.bytes,
        needed_bytes=backup.bytes + min(wal, REPLAYED_BYTES) + SPARE_BYTES,
        estimated_s=START_S + backup.bytes / RESTORED_BYTES_PER_S + len(segments) / REPLAYED_SEGMENTS_PER_S,
    )


def _number(contents: RepositoryContents, lsn: int) -> int:
    return lsn // contents.wal.archive.segment_bytes


def _last_segment(contents: RepositoryContents, way: Way) -> str:
    return f"segment {contents.wal.archive.name(way.segments[-1])}" if way.segments else "its start"


def _end_of(way: Way, reached: str) -> str:
    after = f": {way.gap}" if way.gap else ""
    return f"the archived WAL of timeline {way.timeline} ends before it, at {reached}{after}"


def _archive_newest(sandbox: Sandbox, contents: Sequence[RepositoryContents]) -> str | None:
    """Have a running server end a transaction and archive its newest WAL, and wait for that.

    Returns:
        The WAL segment, which may not be archived; None without such a server, or without a repository.
    """
    usable = [each for each in contents if each.is_usable]
    node = PgBackRest(sandbox).node(contents[0].number)
    if not usable or not node.query("SELECT pg_current_xact_id() WHERE NOT pg_is_in_recovery()"):
        return None
    segment = node.query(SWITCH)  # another session may have switched since
    # Each segment is archived to all repositories at once: one that lags behind does not get it.
    if segment and wait_until(partial(_have, usable, segment, any), ARCHIVE_TIMEOUT_S, interval_s=0.2):
        wait_until(partial(_have, usable, segment, all), LAG_S, interval_s=0.2)
    return segment or None


def _have(contents: Sequence[RepositoryContents], segment: str, quantifier: Callable[[Iterable[bool]], bool]) -> bool:
    """Return whether any, or all, of the repositories have a WAL segment now."""
    for each in contents:
        each.reread_wal()
    return quantifier(each.has_segment(segment) for each in contents)


def _described(contents: RepositoryContents) -> str:
    """Return what a repository covers, as text."""
    try:
        spans = _merged(_covered(contents))
    except (UncoveredTargetError, BackupError):
        return "nothing that can be read"
    texts = [f"{format_time(first)} to {format_time(last)}" for first, last in spans[-SHOWN:]]
    return ", ".join(texts) or "nothing"


def _merged(spans: Iterable[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """Return spans of time in order, those that overlap as one."""
    found: list[tuple[datetime, datetime]] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def _covered(contents: RepositoryContents) -> Iterator[tuple[datetime, datetime]]:
    """Yield the times to which a restore can go; a time is that of the timeline that was live then."""
    ends: set[Position] = set()
    for backup in reversed(contents.backups):
        for timeline in contents.wal.timelines:
            way = contents.wal.way(timeline, backup)
            if way and way.segments and way.segments[-1] not in ends and not contents.missing(backup):
                ends.add(way.segments[-1])
                first, last = max(backup.ended, contents.born(timeline)), contents.wal.last(way)
                if last and last.time >= first:
                    yield first, last.time


def _check_space(sandbox: Sandbox, cover: Cover) -> None:
    available = available_bytes(sandbox.host_path("/srv/data"))
    if available < cover.needed_bytes + RESERVE_BYTES:
        raise NotEnoughSpaceError(
            f"the restore takes {cover.needed_bytes >> 20} MiB in {sandbox.host_path('/srv/data')}, and of the "
            f"{available >> 20} MiB that are available {RESERVE_BYTES >> 20} MiB stay free for the live database",
            remedy="Free space there. `observatory backup flashback list` shows clones, and `observatory backup "
            "discard` removes what rollbacks of the database have set aside.",
        )
