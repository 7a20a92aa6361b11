"""Checks pgBackRest repositories, and makes backups whose expiry keeps the last sound full one.

pgBackRest's own `verify` passes without a WAL segment, and its expiry counts backups with damaged pages. Here a full
backup is sound if its pages have the right checksums and its manifest and WAL are in the repository; only sound ones
count for the retention. A segment that the archive lacks is found by name, along the timelines that a restore follows.

On `local` the library calls these functions. On AWS systemd's timers run this file on the database's machine, with the
standard library alone:

    backup_repository.py [--backup TYPE] [--contents] SETTINGS

SETTINGS is a JSON file: see `observatory.nodes.pgbackrest.repository_settings`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

STANZA = "observatory"
DAY_S = 86_400
HOUR_S = 3600
LOG_BYTES = 1 << 32  # of WAL that share the middle part of a segment's name
SEGMENT_BYTES = 16 << 20  # PostgreSQL's default
LEAST_BYTES = 32  # of an encrypted file
SHOWN = 5  # ranges of segments, or damaged files, that a message names
WAITS_S = 60  # how long WAL waits before that counts as a repository that does not get it
NO_BACKUP = 2  # status of a stanza without backups
SEGMENT = re.compile(rf"{STANZA}/([^/]+)/[0-9A-F]{{16}}/([0-9A-F]{{24}})-[0-9a-f]{{40}}(?:\.[a-z0-9]+)?")
HISTORY = re.compile(rf"{STANZA}/([^/]+)/([0-9A-F]{{8}})\.history")
SEGMENT_NAME = re.compile(r"[0-9A-F]{24}")
RANGE = re.compile(r"([0-9A-F]{24})(?: to ([0-9A-F]{24}))?")
OLD_KEY = re.compile(r"(?:repository \d+: )?WAL segments ")  # in a state of an earlier version
# Of the files that pgBackRest's `verify` does not read.
PARTIAL = re.compile(rf"{STANZA}/[^/]+/[0-9A-F]{{16}}/([0-9A-F]{{24}}\.partial)-([0-9a-f]{{40}})(?:\.[a-z0-9]+)?")
WAL_LABEL = re.compile(rf"{STANZA}/[^/]+/[0-9A-F]{{16}}/[0-9A-F]{{24}}\.[0-9A-F]{{8}}\.backup")
OLD_MANIFEST = re.compile(rf"{STANZA}/backup\.history/.+\.manifest\.gz")
COPY = ".copy"  # ends the name of the second copy of an information file or a manifest
HISTORY_LINE = re.compile(r"\d+\t[0-9A-F]+/[0-9A-F]+\t.*|#.*|")
LABEL_LINE = re.compile(r"[A-Z][A-Z ]+: .+")
CONTROL_LINE = re.compile(r"^(.+?):\s+(\d+)$", re.MULTILINE)
SWITCH = re.compile(r"^\s*(\d+)\s+([0-9A-Fa-f]+)/([0-9A-Fa-f]+)", re.MULTILINE)
RELATION_FILE = re.compile(r"(?:global|base/(\d+)|pg_tblspc/(\d+)/[^/]+/(\d+))/(\d+)(?:_[a-z]+)?(?:\.\d+)?")
GLOBAL = 1664  # the tablespace pg_global
LAST_ARCHIVED = "SELECT last_archived_wal FROM pg_stat_archiver"
DATABASE = "SELECT datname FROM pg_database WHERE oid = {}"
RELATION = """
SELECT found || coalesce(' of ' || coalesce(indrelid, inhparent)::regclass, '')
FROM pg_filenode_relation({}, {}) AS found
LEFT JOIN pg_index ON indexrelid = found LEFT JOIN pg_inherits ON inhrelid = found"""
WITH_OWNER = "with its owner (`cp -a`)"
NEW_FULL = "Make a new full backup: `observatory backup create --type full`"
SET_CLOCK = (
    "pgBackRest makes no backup before then. Set the clock right, or begin a new repository: see docs/backups.md"
)
RESTORE_REPOSITORY = "Restore its files or its passphrase, or give its backups up: see docs/backups.md"

Position = tuple[int, int]  # timeline and number of a WAL segment
Timeline = tuple[int, int]  # number of a database system in the repository, and of a timeline of it; later ones follow
Kind = Literal["archive", "backup"]


@dataclass(frozen=True)
class Node:
    """A machine with a PostgreSQL, and one of its repositories.

    Attributes:
        repository: the number of the repository.
        run: runs a command line and returns its exit status and output.
        pgbackrest: the first words of pgBackRest's command lines.
        psql: the first words of psql's command lines.
        controldata: the command line of pg_controldata.
    """

    repository: int
    run: Callable[[Sequence[str]], tuple[int, str]]
    pgbackrest: tuple[str, ...]
    psql: tuple[str, ...]
    controldata: tuple[str, ...]

    def query(self, statement: str, database: str = "postgres") -> str:
        """Return the only value of a query; empty where the server does not answer."""
        status, output = self.run((*self.psql, "-d", database, "-XAtc", statement))
        return "" if status else output.strip()

    def listing(self, path: str) -> dict[str, int]:
        """Return the size of each file below a path of the repository."""
        status, output = self.run((*self.pgbackrest, "repo-ls", "--recurse", "--output=json", path))
        found = {} if status else json.loads(output)
        return {name: each["size"] for name, each in found.items() if each["type"] == "file"}

    def content(self, path: str) -> str | None:
        """Return the decrypted text of a file of the repository; None where it cannot be decrypted to text."""
        status, output = self.run((*self.pgbackrest, "repo-get", path))
        is_text = all(each.isprintable() or each in "\n\t" for each in output) and "\ufffd" not in output
        return output if status == 0 and is_text else None

    def is_gzip(self, path: str) -> bool:
        """Return whether a file of the repository can be decrypted and decompressed, and its checksum is right."""
        words = ("bash", "-o", "pipefail", "-c", '"$@" | gzip --test', "bash")
        return self.run((*words, *self.pgbackrest, "repo-get", path))[0] == 0

    def wal_sha1(self, name: str) -> str:
        """Return the SHA-1 of a file of the archive; empty where it cannot be fetched."""
        script = 'd=$(mktemp -d) && "$@" "$d/wal" >&2 && sha1sum < "$d/wal"; s=$?; rm -rf "$d"; exit $s'
        status, output = self.run(("bash", "-c", script, "bash", *self.pgbackrest, "archive-get", name))
        return "" if status else output.partition(" ")[0]

    @cached_property
    def control(self) -> Mapping[str, int]:
        """The numbers of pg_controldata by their names; empty where there is no data directory."""
        return {name: int(value) for name, value in CONTROL_LINE.findall(self.run(self.controldata)[1])}


def nodes_of(settings: Mapping[str, Any], run: Callable[[Sequence[str]], tuple[int, str]]) -> dict[int, Node]:
    """Return the node of each repository that the settings describe, by number."""
    pgbackrest, psql, controldata = (tuple(settings[name]) for name in ("pgbackrest", "psql", "controldata"))
    numbers = settings.get("repositories", (1,))  # a stack of version 0.1 has one until its next `up`
    return {each: Node(each, run, (*pgbackrest, f"--repo={each}"), psql, controldata) for each in numbers}


@dataclass(frozen=True)
class Finding:
    """Something wrong with the archive or a backup of a repository.

    `mended` if a later sound full backup in that repository makes up for it. `segments` are the names of WAL segments
    that cannot be read.
    """

    kind: Kind
    text: str
    mended: bool = True
    repository: int = 1
    segments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """The result of a check.

    Attributes:
        findings: what is wrong.
        obstacles: why a backup cannot be restored to the present, by label; a backup without an obstacle can.
        sound: when each sound full backup began, by label, oldest first.
        leading: the backups that lead to each timeline, by the number of the database system and that of the timeline.
        newest: when the newest backup without damaged pages ended; 0 where there is none.
        readable: whether the repository could be read.
        gaps_known: whether the archive's gaps are known; they are not without a timeline's history.
        contents: what is wrong with the contents of files, where they were read.
    """

    findings: tuple[Finding, ...] = ()
    obstacles: Mapping[str, str] = field(default_factory=dict)
    sound: Mapping[str, float] = field(default_factory=dict)
    leading: Mapping[Timeline, tuple[str, ...]] = field(default_factory=dict)
    newest: float = 0.0
    readable: bool = True
    gaps_known: bool = True
    contents: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Archive:
    """The archived WAL of one database system.

    Attributes:
        files: the sizes of each segment's files; more than one if different files have its name.
        histories: the ancestors of a timeline, oldest first: each with the byte of WAL at which it was left.
        segment_bytes: size of a segment.
        ends: segments that were archived for certain: PostgreSQL's last one, and those of backups.
    """

    files: Mapping[Position, list[int]]
    histories: Mapping[int, list[tuple[int, int]]]
    segment_bytes: int
    ends: tuple[Position, ...] = ()

    @property
    def timelines(self) -> set[int]:
        """The timelines of which there is WAL or a history."""
        return {timeline for timeline, _ in (*self.files, *self.ends)} | set(self.histories)

    @property
    def timeline(self) -> int:
        """The newest timeline, which a restore follows."""
        return max(self.timelines, default=1)

    def name(self, position: Position) -> str:
        """Return the name of a segment."""
        log, number = divmod(position[1], LOG_BYTES // self.segment_bytes)
        return f"{position[0]:08X}{log:08X}{number:08X}"

    def spans(self) -> dict[int, range]:
        """Return the numbers of the segments that a restore to the present reads of each timeline.

        A timeline begins with a copy of the segment in which it left its parent.
        """
        spans, first = {}, 0
        for timeline, switch in self.histories.get(self.timeline, []):
            spans[timeline] = range(first, switch // self.segment_bytes)
            first = switch // self.segment_bytes
        newest = (number for timeline, number in (*self.files, *self.ends) if timeline == self.timeline)
        spans[self.timeline] = range(first, max(newest, default=first - 1) + 1)
        return spans

    def is_left(self, timeline: int, byte: int) -> bool:
        """Return whether a place in the WAL is not on the way to the newest timeline."""
        return not self.leads(timeline, byte, to=self.timeline)

    def leads(self, timeline: int, byte: int, *, to: int) -> bool:
        """Return whether a place in the WAL is on the way to a timeline, as far as that one's history is known."""
        return timeline == to or byte <= dict(self.histories.get(to, [])).get(timeline, -1)

    def unusable(self, start: Position) -> list[Position]:
        """Return the segments from `start` to the present that a restore cannot read."""
        wanted = (
            (timeline, number)
            for timeline, span in self.spans().items()
            for number in span[max(0, start[1] - span.start) :]
            if timeline >= start[0]
        )
        return [position for position in wanted if self.problem(position)]

    def holes(self) -> list[Position]:
        """Return the segments that cannot be read between readable ones, where no restore to the present reads them."""
        numbers: dict[int, list[int]] = {}
        for timeline, number in self.files:
            numbers.setdefault(timeline, []).append(number)
        wanted = self.spans()
        return [
            (timeline, number)
            for timeline, present in sorted(numbers.items())
            for number in range(min(present), max(present) + 1)
            if number not in wanted.get(timeline, ()) and self.problem((timeline, number))
        ]

    def problem(self, position: Position) -> str:
        """Return why a segment cannot be read; empty where nothing is known against it."""
        sizes = self.files.get(position, [])
        if not sizes:
            return "missing"
        return "stored twice" if len(sizes) > 1 else "empty" if sizes[0] < LEAST_BYTES else ""

    def unknown_timelines(self, oldest: int) -> list[int]:
        """Return the timelines from `oldest` on whose history the archive lacks or cannot be read.

        PostgreSQL finds the newest timeline by their histories in order, and ends at the first one that is absent.
        """
        return [each for each in range(max(2, oldest), self.timeline + 1) if not self.histories.get(each)]

    def describe(self, positions: Sequence[Position]) -> str:
        """Return segments as text: ranges of names, with what is wrong."""
        starts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(positions)) if not self._adjacent(a, b))]
        runs = [positions[a:b] for a, b in pairwise([*starts, len(positions)])]
        texts = [
            f"{self.name(run[0])}{f' to {self.name(run[-1])}' if len(run) > 1 else ''} ({self.problem(run[0])})"
            for run in runs[:SHOWN]
        ]
        return ", ".join(texts) + (f" and {len(runs) - SHOWN} more ranges" if len(runs) > SHOWN else "")

    def _adjacent(self, one: Position, next_one: Position) -> bool:
        follows = one[0] == next_one[0] and one[1] + 1 == next_one[1]
        return follows and self.problem(one) == self.problem(next_one)


def position(name: str, segment_bytes: int) -> Position:
    """Return the position of a WAL segment by its name."""
    return int(name[:8], 16), int(name[8:16], 16) * (LOG_BYTES // segment_bytes) + int(name[16:24], 16)


def read_stanza(node: Node) -> tuple[dict[str, Any], str]:
    """Return the stanza as `pgbackrest info` reports it, and why it cannot be read; one of the two is empty."""
    status, output = node.run((*node.pgbackrest, "info", "--output=json"))
    if status:
        return {}, output.strip()
    # Not strict: the message about a file with another passphrase quotes what it was decrypted to.
    stanza: dict[str, Any] = next(iter(json.loads(output, strict=False)), {})
    state = stanza.get("status", {"code": 1, "message": "missing stanza path"})
    if state["code"] in (0, NO_BACKUP):
        return stanza, ""
    reasons = [each["status"]["message"] for each in stanza.get("repo", []) if each["status"]["code"]]
    reason = "; ".join(dict.fromkeys(reasons)) or str(state["message"])
    return {}, re.sub(r"[^ -~]+", " ", reason.splitlines()[0]).rstrip(": ")


def records(stanza: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the backups of a stanza, oldest first."""
    return sorted(stanza.get("backup", []), key=lambda record: float(record["timestamp"]["stop"]))


def check(node: Node) -> Report:
    """Check the repository by names and sizes. A finding, or a segment of one, counts if a second look finds it too.

    Between the two a segment is archived, or a backup expires.
    """
    first = _look(node)
    if not first.findings:
        return first
    second = _look(node, among={name for each in first.findings for name in each.segments})
    found = [each for each in second.findings if each.segments or each in first.findings]
    return replace(second, findings=_in_repository(node, found))


def _in_repository(node: Node, findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(replace(each, repository=node.repository) for each in findings)


def _look(node: Node, *, among: Container[str] | None = None) -> Report:
    """Return what is wrong now; of the missing segments only those `among` the given ones."""
    archived = node.query(LAST_ARCHIVED)  # before the archive is listed, which then has this segment
    stanza, error = read_stanza(node)
    if error:
        text = f"the repository cannot be read: {error}. {RESTORE_REPOSITORY}"
        return Report(findings=(Finding("archive", text, mended=False),), readable=False, gaps_known=False)
    archived_files, files = node.listing("archive"), node.listing("backup")
    made = records(stanza)
    archives = {
        each["id"]: _archive(node, _archive_name(stanza, each["id"]), archived_files, made, archived)
        for each in stanza["db"]
    }
    newest = stanza["db"][-1]["id"]
    obstacles: dict[str, str] = {}
    sound: dict[str, float] = {}
    findings = list(_incomplete(archived_files | files))
    if (system := node.control.get("Database system identifier")) and system != stanza["db"][-1]["system-id"]:
        findings.append(
            Finding("archive", "the repository belongs to another database: no WAL is archived", mended=False)
        )
    for record in made:
        archive, label = archives[record["database"]["id"]], record["label"]
        absent = [each for each in _chain(record) if f"{STANZA}/{each}/backup.manifest" not in files]
        start, stop = (position(record["archive"][end], archive.segment_bytes) for end in ("start", "stop"))
        own = [each for each in _between(start, stop, archive) if archive.problem(each)]
        if obstacle := _obstacle(record, archive, absent, own, is_current=record["database"]["id"] == newest):
            obstacles[label] = obstacle
        findings += [each for other in absent if (each := _without_manifest(other, files)) not in findings]
        if record["type"] == "full" and not (record.get("error") or absent or own):
            sound[label] = float(record["timestamp"]["start"])
    current = archives[newest]
    starts = {
        each["label"]: position(each["archive"]["start"], current.segment_bytes)
        for each in made
        if each["database"]["id"] == newest
    }
    leading = _leading(made, archives)
    present = leading.get((newest, current.timeline), ())
    bases = [start for label, start in starts.items() if label in sound and label in present]
    # A restore of the oldest backup begins on its timeline: it needs the histories of later ones only.
    unknown = current.unknown_timelines(min(starts.values())[0] + 1) if starts else []
    findings += _without_history(unknown)
    if not unknown:  # without them it is unknown which segments a restore needs
        findings += _gaps(current, list(starts.values()), bases, among=among)
    findings += _damage(node, made, after=max(sound.values(), default=0.0))
    if made and not sound:
        findings.append(Finding("backup", "there is no sound full backup", mended=False))
    past = [each for each in made if each["timestamp"]["stop"] <= time.time() + HOUR_S]
    if past != made:
        findings.append(Finding("backup", f"{made[-1]['label']} ended in the future: {SET_CLOCK}", mended=False))
    ended = max((float(each["timestamp"]["stop"]) for each in past if not each.get("error")), default=0.0)
    return Report(tuple(findings), obstacles, sound, leading, ended, gaps_known=not unknown)


def _archive_name(stanza: Mapping[str, Any], database: int) -> str:
    version = next(each["version"] for each in stanza["db"] if each["id"] == database)
    return f"{version}-{database}"


def _archive(
    node: Node, name: str, listing: Mapping[str, int], made: Sequence[Mapping[str, Any]], archived: str
) -> Archive:
    """Return the archive of one database system; `archived` is the newest segment of PostgreSQL."""
    size = node.control.get("Bytes per WAL segment") or SEGMENT_BYTES
    files: dict[Position, list[int]] = {}
    histories = {}
    for path, length in listing.items():
        if (segment := SEGMENT.fullmatch(path)) and segment[1] == name:
            files.setdefault(position(segment[2], size), []).append(length)
        elif (history := HISTORY.fullmatch(path)) and history[1] == name:
            text = node.run((*node.pgbackrest, "repo-get", f"archive/{path}"))[1]
            switches = SWITCH.findall(text)
            histories[int(history[2], 16)] = [
                (int(t), (int(high, 16) << 32) + int(low, 16)) for t, high, low in switches
            ]
    stops = [each["archive"]["stop"] for each in made if name.endswith(f"-{each['database']['id']}")]
    known = [*stops, *([archived] if SEGMENT_NAME.fullmatch(archived) else [])]
    return Archive(files, histories, size, tuple(position(each, size) for each in known))


def _chain(record: Mapping[str, Any]) -> list[str]:
    """Return the labels of a backup and of those that it builds on."""
    return [record["label"], *(record.get("reference") or [])]


def _leading(made: Sequence[Mapping[str, Any]], archives: Mapping[int, Archive]) -> dict[Timeline, tuple[str, ...]]:
    """Return the backups that lead to each timeline, oldest first."""
    return {
        (database, timeline): tuple(
            each["label"]
            for each in made
            if _timeline(each)[0] == database and archive.leads(_timeline(each)[1], _stop_byte(each), to=timeline)
        )
        for database, archive in archives.items()
        for timeline in archive.timelines
    }


def _timeline(record: Mapping[str, Any]) -> Timeline:
    """Return the timeline on which a backup was made."""
    return record["database"]["id"], int(record["archive"]["start"][:8], 16)


def _stop_byte(record: Mapping[str, Any]) -> int:
    """Return the byte of the WAL at which a backup ended."""
    high, low = record["lsn"]["stop"].split("/")
    return (int(high, 16) << 32) + int(low, 16)


def _between(start: Position, stop: Position, archive: Archive) -> Iterator[Position]:
    """Yield the segments of a backup itself; the last may exist only as the copy that begins the next timeline."""
    for number in range(start[1], stop[1] + 1):
        copies = [(each, number) for each, span in archive.spans().items() if number in span and each > start[0]]
        yield next((each for each in ((start[0], number), *copies) if each in archive.files), (start[0], number))


def _obstacle(
    record: Mapping[str, Any], archive: Archive, absent: Sequence[str], own: Sequence[Position], *, is_current: bool
) -> str:
    """Return why a backup cannot be restored to the present; empty where it can."""
    start = position(record["archive"]["start"], archive.segment_bytes)
    if absent:
        return f"{absent[0]} has no manifest"
    if not is_current:
        return "of an earlier database system"
    if unknown := archive.unknown_timelines(start[0] + 1):
        return f"{unknown[0]:08X}.history is missing or damaged"
    if archive.is_left(start[0], _stop_byte(record)):
        return f"timeline {start[0]} was left before its end"
    unusable = [*own, *archive.unusable(start)]
    return archive.describe(unusable[:1]) if unusable else ""


def _incomplete(listing: Mapping[str, int]) -> Iterator[Finding]:
    """Yield the files of general information of which pgBackRest has only the copy left."""
    for name in ("archive.info", "backup.info"):
        pair = (f"{STANZA}/{name}", f"{STANZA}/{name}.copy")
        if absent := [each for each in pair if each not in listing]:
            place, present = name.partition(".")[0], next(each for each in pair if each not in absent)
            text = f"{place}/{absent[0]} is missing from the repository: "
            text += f"copy {place}/{present} to that name, {WITH_OWNER}"
            yield Finding("archive" if name == "archive.info" else "backup", text, mended=False)


def _without_manifest(label: str, files: Mapping[str, int]) -> Finding:
    has_copy = f"{STANZA}/{label}/backup.manifest.copy" in files
    remedy = f"Copy {label}/backup.manifest.copy to that name" if has_copy else NEW_FULL
    return Finding("backup", f"{label}/backup.manifest is missing, so the backup cannot be restored. {remedy}")


def _without_history(timelines: Sequence[int]) -> Iterator[Finding]:
    for timeline in timelines:
        text = f"{timeline:08X}.history is missing or damaged: a restore ends on an earlier timeline"
        yield Finding("archive", f"{text}. {NEW_FULL}")


def _gaps(
    archive: Archive, starts: Sequence[Position], bases: Sequence[Position], *, among: Container[str] | None = None
) -> Iterator[Finding]:
    """Yield what the archive lacks between the start of the oldest backup and the present.

    Args:
        archive: of the newest database system, with the histories of its timelines.
        starts: of its backups.
        bases: starts of its sound full backups that lead to the newest timeline.
        among: names of the segments that count; None: all.
    """
    if not starts:
        return
    lacking = (sorted({each for start in starts for each in archive.unusable(start)}), archive.holes())
    needed, left = ([each for each in found if among is None or archive.name(each) in among] for found in lacking)
    if needed:
        text = f"WAL segments that a restore needs: {archive.describe(needed)}. A restore ends before the first of them"
        # Times do not decide about a segment without which no backup can be restored to the present.
        cuts_off = not bases or set(needed) & set(archive.unusable(max(bases)))
        yield Finding("archive", f"{text}. {NEW_FULL}", not cuts_off, segments=tuple(map(archive.name, needed)))
    if left:
        text = f"WAL segments of a timeline that was left: {archive.describe(left)}"
        text += ". A restore to a time on it ends before the first of them"
        yield Finding("archive", f"{text}. {NEW_FULL}", segments=tuple(map(archive.name, left)))


def _damage(node: Node, made: Sequence[Mapping[str, Any]], *, after: float) -> Iterator[Finding]:
    """Yield the damage of the backups that began later than the newest sound full backup."""
    damaged = [each["label"] for each in made if each.get("error") and each["timestamp"]["start"] > after]
    if damaged:
        text = f"backups with damaged pages since the last sound full one: {', '.join(damaged[-SHOWN:])}"
        yield Finding("backup", f"{text}. Damaged: {describe_damage(node, damaged[-1])}", mended=False)


def describe_damage(node: Node, label: str) -> str:
    """Return the damaged files of a backup as text."""
    files = damaged_files(node, label)
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return ("; ".join(files[:SHOWN]) or "its manifest cannot be read") + more


def damaged_files(node: Node, label: str) -> list[str]:
    """Return the files of a backup that have damaged pages, each with its table or index where PostgreSQL answers."""
    status, output = node.run((*node.pgbackrest, "info", f"--set={label}", "--output=json"))
    found = [] if status else json.loads(output)
    paths = [path for stanza in found for each in stanza["backup"] for path in each.get("error-list") or []]
    return [f"{path}{_relation(node, path)}" for path in paths]


def _relation(node: Node, path: str) -> str:
    if not (file := RELATION_FILE.fullmatch(path)):
        return ""
    of_default, tablespace, of_tablespace, number = file.groups()
    database = of_default or of_tablespace
    name = node.query(DATABASE.format(database)) if database else "postgres"
    place = tablespace or (0 if database else GLOBAL)
    relation = node.query(RELATION.format(place, number), name) if name else ""
    return f" ({relation}, database {name})" if relation else ""


def check_contents(node: Node) -> list[Finding]:
    """Read every file of the repository and compare its checksum; takes minutes for each 10 GB.

    pgBackRest's `verify` reads data files and WAL segments. The second copies of its information files and manifests,
    timelines' histories, labels of backups in the WAL, and partial segments are read here.
    """
    status, output = node.run((*node.pgbackrest, "verify", "--output=text"))
    if status:
        text = f"the repository cannot be verified: {output.strip()}"
        return list(_in_repository(node, [Finding("archive", text, mended=False)]))
    bad = dict.fromkeys(re.findall(r"(?:invalid (?:result|checksum|size)|file missing) '?([^\s':]+)", output))
    kinds: dict[str, Kind] = {each: "backup" if each[15:16] == "F" else "archive" for each in bad}
    findings = [Finding(kind, f"{each} is damaged or missing. {NEW_FULL}") for each, kind in kinds.items()]
    if not findings and (
        wrong := re.search(r"^.*(?:status: (?:error|invalid)|duplicate WAL).*$", output, re.MULTILINE)
    ):
        findings = [Finding("archive", f"pgbackrest verify reports: {wrong[0].strip()}. {NEW_FULL}")]
    first = {each.text for each in _unread(node)}
    # A second look: a backup may have ended, or expired, meanwhile.
    findings += [each for each in _unread(node) if each.text in first] if first else []
    return list(_in_repository(node, findings))


def _unread(node: Node) -> Iterator[Finding]:
    """Yield what is wrong with the files that pgBackRest's `verify` does not read."""
    places: tuple[tuple[Kind, str], ...] = (("archive", "archive"), ("backup", "backup"))
    for kind, place in places:
        files = node.listing(place)
        for name in sorted(files):
            path = f"{place}/{name}"
            if name.endswith(COPY) and name.removesuffix(COPY) in files:
                yield from _copies(node, kind, path)
            elif HISTORY.fullmatch(name) and not _has_lines(node.content(path), HISTORY_LINE):
                yield Finding(kind, f"{name} is damaged. {NEW_FULL}")
            elif WAL_LABEL.fullmatch(name) and not _has_lines(node.content(path), LABEL_LINE):
                yield Finding(kind, f"{name} is damaged. Recovery does not need it: remove it", mended=False)
            elif OLD_MANIFEST.fullmatch(name) and not node.is_gzip(path):
                yield Finding(kind, f"{name} is damaged. A restore does not need it: remove it", mended=False)
            elif (partial := PARTIAL.fullmatch(name)) and node.wal_sha1(partial[1]) != partial[2]:
                yield Finding(kind, f"{name} is damaged. {NEW_FULL}")


def _copies(node: Node, kind: Kind, copy: str) -> Iterator[Finding]:
    """Yield a finding if a file and its second copy differ; pgBackRest reads the second only if it cannot the first."""
    pair = (copy.removesuffix(COPY), copy)
    texts = [node.content(path) for path in pair]
    if None not in texts and texts[0] == texts[1]:
        return
    bad = [path for path, text in zip(pair, texts, strict=True) if text is None]
    if len(bad) == 1:
        good = next(path for path in pair if path not in bad)
        yield Finding(kind, f"{bad[0]} is damaged: copy {good} to that name, {WITH_OWNER}", mended=False)
    else:
        yield Finding(kind, f"{pair[0]} and its copy differ, or both are damaged. {NEW_FULL}")


def _has_lines(text: str | None, line: re.Pattern[str]) -> bool:
    """Return whether a text has lines, all of a pattern."""
    return bool(text) and all(line.fullmatch(each) for each in (text or "").splitlines())


def expiry(report: Report, made: Sequence[Mapping[str, Any]], *, days: float, now: float) -> int | None:
    """Return how many of the newest full backups to keep; None if nothing may expire.

    Of each timeline that was live within the retention, the newest sound full backup that leads to it and is older than
    the retention stays, with all that were made since: every restore within the retention can begin with one of them.
    While such a timeline has none, nothing expires. Backups from before a pause far longer than those before it do not
    count as old: the clock may have been put ahead, and at a wrong time every one of them is.
    """
    begin = now - days * DAY_S
    full = [each["label"] for each in made if each["type"] == "full"]
    past = [each for each in _since_pause(made, days=days, now=now) if each["timestamp"]["start"] <= begin]
    old = [each["label"] for each in past if each["label"] in report.sound and each["timestamp"]["stop"] <= begin]
    # A backup of a timeline that a rollback left does not lead to the next one, and an undo leaves that one in turn. A
    # timeline was left before the retention if a backup of a later one began before it.
    live = max(map(_timeline, past), default=(0, 0))
    leading = [labels for timeline, labels in report.leading.items() if timeline >= live]
    needed = [next((each for each in reversed(old) if each in labels), None) for labels in leading]
    if not needed or None in needed:
        return None
    return len(full) - min(full.index(each) for each in needed if each)


def _since_pause(made: Sequence[Mapping[str, Any]], *, days: float, now: float) -> list[Mapping[str, Any]]:
    """Return the backups since the last pause that may be a clock that was put ahead; all where there is none."""
    past = [each for each in made if each["timestamp"]["stop"] <= now]
    first = longest = 0
    for index, (earlier, later) in enumerate(pairwise(each["timestamp"]["stop"] for each in past), 1):
        pause = later - earlier
        first = index if pause > max(days * DAY_S / 2, 2 * longest) else first
        longest = max(longest, pause)
    return past[first:]


def still_open(
    reports: Mapping[int, Report], state: Mapping[str, Any], *, now: float
) -> tuple[list[Finding], dict[str, Any]]:
    """Return the findings that no later sound full backup in their repository makes up for, and the next state.

    Args:
        reports: of the checks, by the number of the repository.
        state: what the last check returned; empty at the first.
        now: the time.
    """
    contents = [Finding(**each) for each in state.get("contents", [])]
    findings = [*(each for report in reports.values() for each in report.findings), *contents]
    known: dict[str, float] = state.get("first_seen", {})
    before = _of_texts(findings, known) | known
    # Times that are later than now were written before the clock was put right.
    seen = {key: min(before.get(key, now), now) for each in findings for key in _keys(each)}
    newest = {
        number: max((start for start in report.sound.values() if start <= now), default=0.0)
        for number, report in reports.items()
    }
    left = [
        each
        for each in findings
        if not each.mended or newest.get(each.repository, 0.0) <= max(seen[key] for key in _keys(each))
    ]
    # A gap that a full backup has mended is not a new one when the repository can be read again.
    unknown = [number for number, report in reports.items() if not report.gaps_known]
    kept = {key: first for key, first in known.items() if _repository(key) in unknown}
    return left, {**state, "first_seen": {**kept, **seen}}


def _keys(finding: Finding) -> list[str]:
    """Return the names of a finding in the state: its segments, whose ranges in the text change, or its text."""
    return [_prefix(finding.repository) + each for each in finding.segments or (finding.text,)]


def _prefix(repository: int) -> str:
    """Return how the names of a repository's findings begin; those of repository 1 are as in version 0.1."""
    return "" if repository == 1 else f"repository {repository}: "


def _repository(key: str) -> int:
    """Return the number of the repository of a finding by its name in the state."""
    found = re.match(r"repository (\d+): ", key)
    return int(found[1]) if found else 1


def _of_texts(findings: Sequence[Finding], known: Mapping[str, float]) -> dict[str, float]:
    """Return when segments were first seen by the texts of findings, which earlier versions have as their names."""
    texts = {key: RANGE.findall(key) for key in known if OLD_KEY.match(key)}
    found: dict[str, float] = {}
    for finding in findings:
        prefix = _prefix(finding.repository)
        own = {text: ranges for text, ranges in texts.items() if _repository(text) == finding.repository}
        for name in finding.segments:
            named = [text for text, ranges in own.items() if any(a <= name <= (b or a) for a, b in ranges)]
            # A text shows the first ranges only.
            times = [known[text] for text in {*named, prefix + finding.text} if text in own]
            found |= {prefix + name: min(times)} if times else {}
    return found


@dataclass(frozen=True)
class WaitingWal:
    """The WAL that PostgreSQL keeps because a repository does not have it yet.

    Attributes:
        segments: how many.
        bytes: their size.
        since: when the first of them was complete, in seconds of the epoch; None where none waits.
        seconds_left: until the disk is full, if WAL is written as since then; None where none waits for a minute.
    """

    segments: int = 0
    bytes: int = 0
    since: float | None = None
    seconds_left: float | None = None


def waiting_wal(directory: Path, *, now: float) -> WaitingWal:
    """Return the WAL that waits in a directory `pg_wal`; none where there is no such directory."""
    found: list[tuple[float, int]] = []
    for status in (directory / "archive_status").glob("*.ready"):
        with contextlib.suppress(FileNotFoundError):  # archived meanwhile
            if SEGMENT_NAME.fullmatch(status.stem):
                found.append((status.stat().st_mtime, (directory / status.stem).stat().st_size))
    if not found:
        return WaitingWal()
    since, size = min(found)[0], sum(length for _, length in found)
    disk = os.statvfs(directory)
    elapsed = now - since
    left = disk.f_bavail * disk.f_frsize * elapsed / size if elapsed >= WAITS_S and size else None
    return WaitingWal(len(found), size, since, left)


def waiting_metrics(waiting: WaitingWal) -> str:
    """Return what waits in Prometheus' text format; the time left is infinite where nothing waits for a minute."""
    left = "+Inf" if waiting.seconds_left is None else f"{waiting.seconds_left:.0f}"
    return (
        "# HELP observatory_wal_waiting_bytes WAL that a backup repository does not have yet.\n"
        "# TYPE observatory_wal_waiting_bytes gauge\n"
        f"observatory_wal_waiting_bytes {waiting.bytes}\n"
        "# HELP observatory_wal_waiting_left_seconds Until waiting WAL fills the disk.\n"
        "# TYPE observatory_wal_waiting_left_seconds gauge\n"
        f"observatory_wal_waiting_left_seconds {left}\n"
    )


def metrics(findings: Sequence[Finding], reports: Mapping[int, Report], *, now: float) -> str:
    """Return the findings, and the age of the newest backup of each repository, in Prometheus' text format."""
    by_name: dict[str, tuple[str, Callable[[int], object]]] = {
        "observatory_archive_gaps": (
            "Findings about the WAL archive, as a gap.",
            lambda number: sum(each.kind == "archive" and each.repository == number for each in findings),
        ),
        "observatory_backups_damaged": (
            "Findings about backups, as damaged pages.",
            lambda number: sum(each.kind == "backup" and each.repository == number for each in findings),
        ),
        "observatory_backup_repository_readable": (
            "Whether the backup repository can be read.",
            lambda number: int(reports[number].readable),
        ),
        "observatory_backup_last_completion_timestamp_seconds": (
            "When the newest backup without damaged pages ended; 0 where there is none.",
            lambda number: f"{reports[number].newest:.0f}",
        ),
        "observatory_backup_check_timestamp_seconds": (
            "When the repository was last checked.",
            lambda _number: f"{now:.3f}",
        ),
    }
    lines = []
    for name, (what, value) in by_name.items():
        lines += [f"# HELP {name} {what}", f"# TYPE {name} gauge"]
        lines += [f'{name}{{repository="{number}"}} {value(number)}' for number in reports]
    return "\n".join([*lines, ""])


def expire(node: Node, *, days: float) -> str:
    """Remove the backups older than the retention, and their WAL; return pgBackRest's output if it fails."""
    keep = expiry(check(node), records(read_stanza(node)[0]), days=days, now=time.time())
    if keep is None:
        return ""
    retention = f"--repo{node.repository}-retention-full"
    options = (f"{retention}-type=count", f"{retention}={keep}")
    status, output = node.run((*node.pgbackrest, "expire", *options))
    return f"pgbackrest expire failed with exit status {status}:\n{output.strip()}" if status else ""


def back_up(node: Node, kind: str, *, days: float) -> str:
    """Make a backup, and let earlier ones expire if it is sound; return what failed."""
    status, output = node.run((*node.pgbackrest, "backup", f"--type={kind}"))
    if status:
        return f"pgbackrest backup to repository {node.repository} failed with exit status {status}:\n{output.strip()}"
    label = next(iter(re.findall(r"new backup label = (\S+)", output)), "")
    if any(each["label"] == label and each.get("error") for each in records(read_stanza(node)[0])):
        return f"the backup {label} contains damaged pages: {describe_damage(node, label)}"
    return expire(node, days=days)


def main() -> None:
    """Make a backup if one is wanted, check the repository, and write metrics; fails if the backup does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backup", choices=("full", "diff", "incr"), help="make a backup of this type first")
    parser.add_argument("--contents", action="store_true", help="read every file of the repository")
    parser.add_argument("settings", type=Path, help="file with the repository's settings")
    arguments = parser.parse_args()
    settings = json.loads(arguments.settings.read_text(encoding="utf-8"))
    nodes, days = nodes_of(settings, _run), settings["retention_days"]
    failed = [back_up(node, arguments.backup, days=days) for node in nodes.values()] if arguments.backup else []
    file = Path(settings["state"])
    state = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if arguments.contents:
        state["contents"] = [vars(each) for node in nodes.values() for each in check_contents(node)]
    reports = {number: check(node) for number, node in nodes.items()}
    findings, state = still_open(reports, state, now=time.time())
    _write(file, json.dumps(state))
    waiting = waiting_wal(Path(settings["controldata"][-1], "pg_wal"), now=time.time())
    _write(Path(settings["metrics"]), metrics(findings, reports, now=time.time()) + waiting_metrics(waiting))
    for each in findings:
        sys.stderr.write(f"repository {each.repository}: {each.text}\n")
    if any(failed):
        sys.exit("\n".join(filter(None, failed)))


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.new")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def _run(command: Sequence[str]) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return done.returncode, done.stdout or done.stderr


if __name__ == "__main__":
    main()
