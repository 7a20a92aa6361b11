"""Random targets are restored from two repositories and over three timelines, and compared with a ledger of commits."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from observatory.backups.cover import Cover, find_cover
from observatory.backups.repository_contents import UncoveredTargetError
from observatory.backups.restored import restored_instance
from observatory.backups.scratch import scratch_directory
from observatory.backups.target import InvalidTargetError, RecoveryTarget, format_lsn
from observatory.backups.tool import BackupType
from observatory.database.migrations.files import Edition
from observatory.errors import ObservatoryError
from observatory.nodes.pgbackrest import cipher_file, cipher_section, repository
from observatory.runtime import Sandbox
from observatory.workspace import Workspace
from proofs.record import Outcome
from tests.backups.conftest import DATA, PASSPHRASES, PATHS, ArchivingServer
from tests.support.checkout import SOURCE
from tests.support.ports import free_ports
from tests.support.postgres import community_root

PROMISE = (
    "A random target (a time to the microsecond, a position in the WAL, a backup or the newest state) in a random "
    "repository and on any of three timelines is restored exactly to the transaction, as a ledger of commits has it. "
    "A target without cover is refused before any file of the stack changes."
)
COVERED, UNCOVERED = 100, 100  # targets in a round
ROLLBACKS = 2  # each ends a timeline
COMMITS = 60  # in the ledger between two backups
WRITERS = 2  # of other tables meanwhile
SCHEMA = """
CREATE EXTENSION timescaledb;
CREATE TABLE ledger (n int, at timestamptz NOT NULL DEFAULT clock_timestamp());
SELECT create_hypertable('ledger', by_range('at', interval '5 seconds'));
CREATE TABLE noise (filler text)
"""
# On the community edition also compressed chunks and a continuous aggregate, which each restored database must have.
COMPRESSED = """
CREATE TABLE kept (n int, at timestamptz NOT NULL);
SELECT create_hypertable('kept', by_range('at', interval '1 day'));
ALTER TABLE kept SET (timescaledb.compress);
INSERT INTO kept SELECT n, timestamptz '2026-01-01 00:00Z' + n * interval '1 hour' FROM generate_series(1, 240) n;
SELECT compress_chunk(c) FROM show_chunks('kept') c
"""
AGGREGATE = """
CREATE MATERIALIZED VIEW kept_daily WITH (timescaledb.continuous) AS
SELECT time_bucket('1 day', at) AS day, sum(n) AS total FROM kept GROUP BY 1
"""
KEPT = "SELECT (SELECT sum(n) FROM kept), (SELECT sum(total) FROM kept_daily)"
KEPT_SUM = sum(range(1, 241))
NOISE = "INSERT INTO noise SELECT repeat(md5(n::text), 20) FROM generate_series(1, 100) n"
LEDGER = "SELECT coalesce(array_agg(n ORDER BY n), '{}') FROM ledger"
TIMES = "SELECT n, pg_xact_commit_timestamp(xmin) FROM ledger"
POSITION = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"
LAST = datetime.max.replace(tzinfo=UTC)
SECOND, TICK = timedelta(seconds=1), timedelta(microseconds=1)


@dataclass(kw_only=True)
class Era:
    """A timeline.

    Attributes:
        inherited: the rows that it began with.
        commits: when each of its own rows was committed.
        positions: a byte of the WAL after the commit of each, and before the next.
    """

    inherited: list[int]
    commits: dict[int, datetime] = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)

    def at(self, time: datetime) -> list[int]:
        """Return the rows at a time."""
        return [*self.inherited, *(n for n, each in self.commits.items() if each <= time)]

    def at_lsn(self, lsn: int) -> list[int]:
        """Return the rows at a position that one of its transactions had."""
        return [*self.inherited, *(n for n, each in self.positions.items() if each <= lsn)]


@dataclass
class Past:
    """A server with a ledger, and its backups: repository, label and rows of each."""

    server: ArchivingServer
    draw: random.Random
    edition: Edition
    eras: list[Era] = field(default_factory=lambda: [Era(inherited=[])])
    backups: list[tuple[int, str, list[int]]] = field(default_factory=list)
    covered_from: datetime = LAST
    count: int = 0

    def live(self) -> None:
        """Make history: in each era backups to both repositories, commits, and at its end a rollback."""
        self._prepare()
        for turn in range(ROLLBACKS + 1):
            for kind in (BackupType.INCREMENTAL if turn else BackupType.FULL, BackupType.INCREMENTAL):
                self._back_up(kind)
                with self._noise():
                    self._commit()
            self.server.archive_segments(1)
            if turn < ROLLBACKS:
                self._roll_back()

    def connect(self) -> psycopg.Connection:
        """Return a connection to the live server."""
        return psycopg.connect(host="127.0.0.1", port=self.server.port, user="postgres", autocommit=True)

    def _prepare(self) -> None:
        settings = {"shared_preload_libraries": "timescaledb", "track_commit_timestamp": "on"}
        with self.server.sandbox.host_path(f"{DATA}/postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        self.server.stop()
        self.server.start()
        self.server.tool.prepare()
        with self.connect() as connection:
            connection.execute(SCHEMA)
            if self.edition == "community":
                connection.execute(COMPRESSED)
                connection.execute(AGGREGATE)

    def _back_up(self, kind: BackupType) -> None:
        for number in (1, 2):
            made = self.server.tool.backup(kind, repository=number)
            era = self.eras[-1]
            self.backups.append((number, made.label, [*era.inherited, *era.commits]))
        self.covered_from = min(self.covered_from, made.ended + SECOND)
        time.sleep(1.1)  # pgBackRest has whole seconds

    @contextmanager
    def _noise(self) -> Iterator[None]:
        """Let other sessions commit in the meantime."""
        over = threading.Event()

        def write() -> None:
            with self.connect() as connection:
                while not over.wait(0.05):
                    connection.execute(NOISE)

        writers = [threading.Thread(target=write) for _ in range(WRITERS)]
        for each in writers:
            each.start()
        try:
            yield
        finally:
            over.set()
            for each in writers:
                each.join()

    def _commit(self) -> None:
        era = self.eras[-1]
        with self.connect() as connection:
            for _ in range(COMMITS):
                self.count += 1
                connection.execute("INSERT INTO ledger VALUES (%s)", [self.count])
                era.positions[self.count] = connection.execute(POSITION).fetchall()[0][0]
                time.sleep(0.02)
            times: dict[int, datetime] = dict(connection.execute(TIMES).fetchall())
        era.commits = {number: times[number] for number in era.positions}

    def _roll_back(self) -> None:
        """Put the database back to a time of the newest era; what follows is on a new timeline."""
        era = self.eras[-1]
        target = self.draw.choice(list(era.commits.values())[COMMITS:])
        sandbox = self.server.sandbox
        cover = find_cover(sandbox, RecoveryTarget.at_time(target))
        with (
            scratch_directory(sandbox, "proof") as directory,
            restored_instance(cover, directory=directory) as instance,
        ):
            instance.stop()
            self.server.stop()
            sandbox.remove_file(DATA)
            sandbox.host_path(directory.data).rename(sandbox.host_path(DATA))
        options = {
            "recovery_target_lsn": format_lsn(cover.stop),
            "recovery_target_inclusive": "on" if cover.inclusive else "off",
            "recovery_target_timeline": "current" if cover.timeline == cover.backup_timeline else str(cover.timeline),
            "recovery_target_action": "promote",
        }
        with sandbox.host_path(f"{DATA}/postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in options.items())
        sandbox.write_file(f"{DATA}/recovery.signal", "")
        self.server.start()
        self.eras.append(Era(inherited=era.at(target)))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A target in a repository, and the rows that belong to it."""

    kind: str
    target: RecoveryTarget
    repository: int
    rows: list[int]


def prove(rounds: int, share: int) -> Outcome:
    """Restore `COVERED` targets, and try `UNCOVERED` others, of a history of its own in each round and edition.

    The community edition's is tried where OBSERVATORY_PG_PREFIX names its installation.
    """
    outcome, counts, begun = Outcome(promise=PROMISE), Counter[str](), time.monotonic()
    editions: tuple[Edition, ...] = ("apache", "community") if community_root() else ("apache",)
    for seed, edition in enumerate(editions * rounds):
        with _past(seed, edition) as past:
            for number in range(COVERED // share):
                case = _covered(past, number)
                counts[f"restored: {case.kind}, repository {case.repository}"] += 1
                counts[f"restored: edition {edition}"] += 1
                outcome.failures += _restore(past, case)
            past.server.stop()
            for _ in range(UNCOVERED // share):
                kind = past.draw.choice(list(BAD))
                counts[f"refused: {kind}"] += 1
                outcome.failures += _refuse(past, kind)
    outcome.failed = len(outcome.failures)
    outcome.passed = sum(number for what, number in counts.items() if "edition" not in what) - outcome.failed
    outcome.counts = {"timelines": ROLLBACKS + 1, **dict(sorted(counts.items()))}
    outcome.seconds = time.monotonic() - begun
    return outcome


@contextmanager
def _past(seed: int, edition: Edition) -> Iterator[Past]:
    community = community_root() if edition == "community" else None
    rootfs = community or Workspace(root=SOURCE, stack="local").ensure_rootfs()
    with tempfile.TemporaryDirectory(prefix="observatory-recovery-") as directory:
        server = ArchivingServer(Sandbox(Path(directory) / "home", rootfs), free_ports()["postgres"])
        try:
            server.create()
            past = Past(server, random.Random(seed), edition)  # noqa: S311 - no secret
            past.live()
            yield past
        finally:
            server.sandbox.stop()


def _covered(past: Past, number: int) -> Case:
    """Draw a target that both repositories cover, of each kind in turn."""
    draw, era = past.draw, past.draw.choice(past.eras)
    chosen = draw.choice((1, 2))
    kind = ("time", "time", "commit", "before a commit", "position", "position", "backup", "latest")[number % 8]
    own = [n for n, each in era.commits.items() if each > past.covered_from]
    if kind == "latest":
        newest = past.eras[-1]
        return Case(
            kind=kind, target=RecoveryTarget.latest(), repository=chosen, rows=[*newest.inherited, *newest.commits]
        )
    if kind == "backup":
        holder, label, rows = draw.choice(past.backups)
        return Case(kind=kind, target=RecoveryTarget.of_backup(label), repository=holder, rows=rows)
    if kind == "position":
        lsn = era.positions[draw.choice(own)]
        target = RecoveryTarget.at_lsn(lsn, timeline=past.eras.index(era) + 1)
        return Case(kind=kind, target=target, repository=chosen, rows=era.at_lsn(lsn))
    first, last = era.commits[own[0]], era.commits[own[-1]]
    at = era.commits[draw.choice(own)]
    between = first + (last - first) * draw.random()
    when = {"time": between, "commit": at, "before a commit": at - TICK}[kind]
    return Case(kind=kind, target=RecoveryTarget.at_time(when), repository=chosen, rows=era.at(when))


def _restore(past: Past, case: Case) -> list[str]:
    """Restore a target; return what is not as the ledger has it."""
    sandbox = past.server.sandbox
    what = f"{case.kind} {case.target} in repository {case.repository}"
    try:
        cover = find_cover(sandbox, case.target, repository=case.repository)
        with (
            scratch_directory(sandbox, "proof") as directory,
            restored_instance(cover, directory=directory) as instance,
            instance.connect() as connection,
        ):
            [(rows,)] = connection.execute(LEDGER).fetchall()
            if past.edition == "community" and (kept := connection.execute(KEPT).fetchone()) != (KEPT_SUM, KEPT_SUM):
                return [f"{what}: the compressed table and its aggregate have {kept}, expected {KEPT_SUM} each"]
    except ObservatoryError as error:
        return [f"{what}: {error}"]
    if rows == case.rows:
        return []
    return [f"{what}: {sorted(set(case.rows) - set(rows))} are missing, {sorted(set(rows) - set(case.rows))} too many"]


def _refuse(past: Past, kind: str) -> list[str]:
    """Try a target without cover; return what was not as promised."""
    with BAD[kind](past, past.draw.choice((1, 2))) as (target, number):
        before = _files(past)
        try:
            cover: Cover | str = find_cover(past.server.sandbox, RecoveryTarget.parse(target), repository=number)
        except (UncoveredTargetError, InvalidTargetError) as error:
            cover = "" if str(error) else "no message"
        after = _files(past)
    failures = [f"{kind}: {target} in repository {number}: {cover}"] if cover else []
    return [*failures, *(f"{kind}: {each} has changed" for each in sorted({*before.items()} ^ {*after.items()}))]


def _files(past: Past) -> dict[str, tuple[int, int]]:
    files = (each for each in past.server.sandbox.home.rglob("*") if each.is_file() and not each.is_symlink())
    return {str(each): (each.stat().st_size, each.stat().st_mtime_ns) for each in files}


def _as_given(make: Callable[[Past], str]) -> Callable[[Past, int], Any]:
    """Return the making of a target for which nothing is broken."""

    @contextmanager
    def made(past: Past, number: int) -> Iterator[tuple[str, int]]:
        yield make(past), number

    return made


@contextmanager
def _gap(past: Past, number: int) -> Iterator[tuple[str, int]]:
    """Take away a WAL segment that the target needs."""
    draw, archived = past.draw, past.server.sandbox.host_path(repository(PATHS, number)) / "archive"
    target = str(RecoveryTarget.at_time(draw.choice(list(draw.choice(past.eras).commits.values())[-COMMITS:])))
    cover = find_cover(past.server.sandbox, RecoveryTarget.parse(target), repository=number)
    files = sorted(each for each in archived.rglob("*.zst") if cover.segments[0] <= each.name[:24] < cover.segments[1])
    taken = draw.choice(files)
    away = taken.rename(Path(tempfile.mkdtemp(prefix="observatory-recovery-")) / taken.name)
    try:
        yield target, number
    finally:
        shutil.move(away, taken)
        away.parent.rmdir()


@contextmanager
def _wrong_key(past: Past, number: int) -> Iterator[tuple[str, int]]:
    file = cipher_file(PATHS, number)
    past.server.sandbox.write_file(file, cipher_section("of another stack", number))
    try:
        yield "latest", number
    finally:
        past.server.sandbox.write_file(file, cipher_section(PASSPHRASES[number], number))


@contextmanager
def _truncated(past: Past, _number: int) -> Iterator[tuple[str, int]]:
    """Cut off the end of a file of a backup."""
    number, label, _rows = past.draw.choice(past.backups)
    place = past.server.sandbox.host_path(repository(PATHS, number)) / "backup/observatory" / label
    file = past.draw.choice(sorted((place / "bundle").iterdir()))
    kept = file.read_bytes()
    file.write_bytes(kept[: -past.draw.randrange(16, len(kept))])
    try:
        yield label, number
    finally:
        file.write_bytes(kept)


def _ago(past: Past) -> str:
    return str(RecoveryTarget.at_time(past.covered_from - SECOND * past.draw.uniform(60, 10**8)))


def _ahead(past: Past) -> str:
    return str(RecoveryTarget.at_time(datetime.now(UTC) + SECOND * past.draw.uniform(60, 10**8)))


BAD: dict[str, Callable[[Past, int], Any]] = {
    "a time before the first backup": _as_given(_ago),
    "a time in the future": _as_given(_ahead),
    "a time after the last archived WAL": _as_given(lambda _: str(RecoveryTarget.at_time(datetime.now(UTC)))),
    "a time without a zone": _as_given(lambda past: str(past.covered_from.replace(tzinfo=None))),
    "a position after the last archived WAL": _as_given(lambda past: format_lsn(past.draw.randrange(1 << 40, 1 << 60))),
    "an unknown backup": _as_given(lambda past: f"{past.draw.randrange(20000101, 20200101)}-000000F"),
    "a gap of the archive": _gap,
    "a wrong key": _wrong_key,
    "a truncated backup": _truncated,
}
