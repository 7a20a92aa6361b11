"""A restore drill: restores a backup into a scratch instance, replays WAL, and proves that the data is exact.

The instance first stops where values were recorded, and is compared with them; then it replays to the target, is
promoted, and pg_amcheck reads every table and index. The live data is not touched. Owns the order of the steps and what
each failure means; the receipt is `observatory.backups.receipts`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg

from observatory.backups.comparison import compare_values
from observatory.backups.cover import Cover, find_cover
from observatory.backups.exact_snapshot import ValuesNotRecordedError
from observatory.backups.receipts import DrillCheck, Receipt, ReceiptStore, newest_by_repository, system_identifier
from observatory.backups.recording import live_conninfo, record_after_backup
from observatory.backups.repository_contents import (
    RepositoryContents,
    UncoveredTargetError,
    check_configured,
    configured_repositories,
)
from observatory.backups.restored import RestoredInstance, restored_instance
from observatory.backups.scratch import scratch_directory
from observatory.backups.target import RecoveryTarget, format_lsn, parse_lsn
from observatory.backups.values import RecordedValues, ValueStore
from observatory.database.connection import connect
from observatory.database.errors import DatabaseError
from observatory.errors import REFUSED, ObservatoryError
from observatory.nodes.pgbackrest import BIN
from observatory.nodes.programs.backup_repository import position
from observatory.progress import Reporter, silent, task
from observatory.runtime import RuntimeFault

CORRUPT = 2  # exit status of pg_amcheck
SHOWN_LINES = 5
CHECKS = ("cover", "restore", "isolation", "values", "target", "pages")
# Of the instance itself, which a backend of it reads.
ISOLATION = {
    "archive_mode": ("SELECT current_setting('archive_mode')", "off"),
    "archive_command": ("SELECT current_setting('archive_command')", "(disabled)"),
    "listen_addresses": ("SELECT current_setting('listen_addresses')", ""),
    "pg_cron": ("SELECT count(*)::text FROM pg_stat_activity WHERE backend_type LIKE 'pg_cron%'", "0"),
    "TimescaleDB's jobs": ("SELECT current_setting('timescaledb.max_background_workers')", "0"),
    "network interfaces": (
        """SELECT string_agg(split_part(trim(line), ':', 1), ' ')
           FROM string_to_table(pg_read_file('/proc/self/net/dev'), E'\\n') AS line WHERE line LIKE '%:%'""",
        "lo",
    ),
}
# How old the oldest transaction that the archive lacks can be: archive_timeout ends a segment with transactions.
_ARCHIVED = """
    SELECT last_archived_wal, pg_walfile_name(pg_current_wal_insert_lsn()),
           extract(epoch FROM clock_timestamp() - last_archived_time)::float,
           coalesce(last_failed_time > last_archived_time, false),
           extract(epoch FROM current_setting('archive_timeout')::interval)::float
    FROM pg_stat_archiver WHERE last_archived_time IS NOT NULL
"""


_SEGMENT_BYTES = "SELECT pg_size_bytes(current_setting('wal_segment_size'))"
PAGES = (f"{BIN}/pg_amcheck", "--all", "--install-missing", "--jobs=2", "--heapallindexed")
WRITABLE = "for each in /srv/data/backups* /run/backups* /srv/etc /srv/data; do test ! -w $each || echo $each; done"
NO_VALUES = "no values were recorded that a restored database could be compared with"
RECORD_FOR_S = 3600  # as after a long backup
TRIED = 2  # of the newest values


class DrillRefusedError(ObservatoryError):
    """A drill cannot prove anything as things are; nothing was restored."""

    exit_code = REFUSED


class _FailedError(ObservatoryError):
    """A check failed, so that those after it are not made."""


@dataclass
class _Findings:
    """What a drill has found so far; the attributes are those of the receipt."""

    checks: list[DrillCheck] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def passed(self, name: str, detail: str) -> None:
        self.checks.append(DrillCheck(name=name, result="passed", detail=detail))

    def failed(self, name: str, detail: str) -> None:
        self.checks.append(DrillCheck(name=name, result="failed", detail=detail))

    @contextmanager
    def check(self, name: str) -> Iterator[None]:
        """Record an error of the block as a failed check."""
        try:
            yield
        except (RuntimeFault, DatabaseError, psycopg.Error) as error:
            self.failed(name, str(error))
            raise _FailedError from error

    def all(self) -> tuple[DrillCheck, ...]:
        made = {each.name for each in self.checks}
        skipped = [DrillCheck(name=name, result="not run", detail="") for name in CHECKS if name not in made]
        return (*self.checks, *skipped)


@dataclass(frozen=True, kw_only=True)
class _Way:
    """The recorded values that a drill compares, and the covers of their place and of its target."""

    values: RecordedValues
    first: Cover
    final: Cover


@dataclass(frozen=True, kw_only=True)
class Drill:
    """A drill of the stack's backups.

    Attributes:
        store: keeps the receipt.
        stack: name of the stack.
        target: the newest state or a time.
        repository: the number of the repository; None: the one whose last drill is the oldest.
        report: gets progress.
    """

    store: ReceiptStore
    stack: str
    target: RecoveryTarget
    repository: int | None = None
    report: Reporter = silent

    def run(self) -> Receipt:
        """Run the drill, and return its receipt, which is kept.

        Raises:
            DrillRefusedError: no values were recorded that the restored database could be compared with.
            UncoveredTargetError: no backup leads to the time that was asked for, or there is no such repository.
            NotEnoughSpaceError: the disk is too small.
        """
        if self.repository is not None:
            check_configured(self.store.sandbox, self.repository)  # its receipt would be that of a failed drill
        started, found = datetime.now(UTC), _Findings()
        repository = self.repository or self.next_repository()
        found.facts.update(repository=repository, rpo_seconds=self._recovery_point_s())
        with suppress(_FailedError):
            self._restore_and_check(repository, found)
        receipt = Receipt(
            stack=self.stack,
            system=system_identifier(self.store.sandbox),
            started=started,
            finished=datetime.now(UTC),
            target=str(self.target),
            proves=self.target.time or started,
            checks=found.all(),
            result="passed" if all(each.result == "passed" for each in found.all()) else "failed",
            **found.facts,
        )
        self.store.add(receipt)
        return receipt

    def next_repository(self) -> int:
        """Return the repository without a receipt, or with the oldest one."""
        newest = newest_by_repository(self.store.of_stack(self.stack))
        never = datetime.min.replace(tzinfo=UTC)
        return min(
            configured_repositories(self.store.sandbox),
            key=lambda number: newest[number].finished if number in newest else never,
        )

    def _restore_and_check(self, repository: int, found: _Findings) -> None:
        sandbox = self.store.sandbox
        with task(self.report, "find the backup, the WAL and the recorded values"):
            way = self._way(repository, found)
        found.passed("cover", f"backup {way.first.label} and {way.final.replayed} WAL segments")
        found.facts.update(backup=way.first.label, values=way.values.name)
        with scratch_directory(sandbox, "drill") as directory, ExitStack() as opened:
            begun = time.monotonic()
            with task(self.report, f"restore {way.first.label} from repository {repository}"), found.check("restore"):
                instance = opened.enter_context(restored_instance(way.first, directory=directory))
            restored_s = time.monotonic() - begun
            found.passed(
                "restore",
                f"{way.first.database_bytes} bytes and {way.first.replayed} WAL segments in {restored_s:.1f} s",
            )
            with task(self.report, "compare with the recorded values"):
                _check_isolation(instance, found)
                _check_values(instance, way.values, found)
            begun = time.monotonic()
            with task(self.report, f"replay WAL to {self.target}"), found.check("target"):
                _check_target(instance, way.final, found)
            found.facts["rto_seconds"] = round(restored_s + time.monotonic() - begun, 1)
            with task(self.report, "read every table and index"), found.check("pages"):
                _check_pages(instance, found)

    def _way(self, repository: int, found: _Findings) -> _Way:
        """Return by which backup and WAL the drill goes, and past which recorded values."""
        try:
            way = self._known_way(repository)
            if way is None and self.target.kind == "latest":
                record_after_backup(self.store.sandbox, seconds=RECORD_FOR_S)
                way = self._known_way(repository)
        except UncoveredTargetError as error:
            if self.target.kind != "latest":
                raise
            found.failed("cover", str(error))
            raise _FailedError from error
        except ValuesNotRecordedError as error:
            raise DrillRefusedError(f"{NO_VALUES}, and {error}") from error
        if way is None:
            raise DrillRefusedError(
                f"{NO_VALUES} at or before {self.target}",
                remedy="Choose a later time: values are recorded some seconds after each backup.",
            )
        return way

    def _known_way(self, repository: int) -> _Way | None:
        """Return the way past the newest values that the repository leads to; None where it leads to none."""
        sandbox = self.store.sandbox
        final = find_cover(sandbox, self.target, repository=repository, archived_only=True)
        contents = RepositoryContents(sandbox, repository)
        for values in _recorded_on_the_way(contents, final, until=self.target.time)[-TRIED:][::-1]:
            with suppress(UncoveredTargetError):
                place = RecoveryTarget.at_lsn(values.lsn, timeline=final.timeline)
                return _Way(values=values, first=find_cover(sandbox, place, repository=repository), final=final)
        return None

    def _recovery_point_s(self) -> float | None:
        """Return the age that the oldest transaction outside of the archive has at most; None without a server."""
        try:
            with (
                live_conninfo(self.store.sandbox) as conninfo,
                connect(conninfo, purpose="restore drill") as connection,
            ):
                row = connection.execute(_ARCHIVED.encode()).fetchone()
                [size] = connection.execute(_SEGMENT_BYTES.encode()).fetchone() or (0,)
        except (ValuesNotRecordedError, DatabaseError, psycopg.Error):
            return None
        if row is None:
            return None
        archived, current, age, failing, timeout = row
        unarchived_s: float = age
        follows = position(current, size)[1] - position(archived, size)[1] <= 1
        return round(min(unarchived_s, timeout) if follows and not failing and timeout else unarchived_s, 1)


def _recorded_on_the_way(contents: RepositoryContents, final: Cover, *, until: datetime | None) -> list[RecordedValues]:
    """Return the values that were recorded on the way to a target, oldest first."""
    history = dict(contents.wal.archive.histories.get(final.timeline, []))
    system = system_identifier(contents.sandbox)

    def is_on_the_way(values: RecordedValues) -> bool:
        lsn = parse_lsn(values.lsn)
        # A recovery to a time ends with the last transaction before it, and values may be later in the WAL.
        is_early = lsn <= final.stop if until is None else values.recorded <= until
        is_known = values.timeline == final.timeline or lsn <= history.get(values.timeline, -1)
        return is_early and is_known and values.system in {system, ""}

    return [values for values in ValueStore(contents.sandbox).all() if is_on_the_way(values)]


def _check_isolation(instance: RestoredInstance, found: _Findings) -> None:
    """Prove that the instance cannot archive, run jobs or reach the network, and cannot write to the repository."""
    with found.check("isolation"):
        with instance.connect() as connection:
            seen = {name: connection.execute(query.encode()).fetchone() for name, (query, _) in ISOLATION.items()}
        repositories = instance.run(["/bin/sh", "-c", WRITABLE], check=False).stdout.split()
    wrong = [f"{name} is {seen[name]}" for name, (_, expected) in ISOLATION.items() if seen[name] != (expected,)]
    wrong += [f"{path} is writable" for path in repositories]
    if wrong:
        found.failed("isolation", "; ".join(wrong))
        raise _FailedError
    found.passed("isolation", "no archiving, no jobs, no network, and the stack's files are read-only")


def _check_values(instance: RestoredInstance, values: RecordedValues, found: _Findings) -> None:
    with found.check("values"):
        compared = compare_values(instance.conninfo(values.database), values)
    if compared.differences:
        found.failed("values", f"at {values.lsn}: {compared.describe()}")
        return
    share = f"{values.compared_bytes / max(1, values.bytes):.0%} of the data"
    found.passed(
        "values",
        f"{compared.rows} rows in {compared.pieces} parts of {len(values.tables)} tables ({share}) are as recorded at "
        f"{values.lsn}, {values.recorded.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
    )


def _check_target(instance: RestoredInstance, final: Cover, found: _Findings) -> None:
    """Replay to the target, and check that the recovery ended there."""
    if final.stop > instance.cover.stop:
        instance.advance(final)
    replayed = instance.replayed
    found.facts.update(lsn=format_lsn(replayed.lsn), last_transaction=replayed.last_transaction)
    short, time_limit = final.inclusive and replayed.lsn < final.stop, final.target.time
    if short or (time_limit and replayed.last_transaction and replayed.last_transaction > time_limit):
        found.failed("target", f"the recovery ended at {format_lsn(replayed.lsn)}, expected {format_lsn(final.stop)}")
        return
    last = replayed.last_transaction
    ended = f", the last transaction at {last.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if last else ""
    found.passed("target", f"replayed to {format_lsn(replayed.lsn)}{ended}")


def _check_pages(instance: RestoredInstance, found: _Findings) -> None:
    """Read every table and index of every database."""
    instance.promote()
    done = instance.run(PAGES, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode:
        what = "corruption" if done.returncode == CORRUPT else f"pg_amcheck ended with exit status {done.returncode}"
        more = f" and {len(lines) - SHOWN_LINES} more lines" if len(lines) > SHOWN_LINES else ""
        found.failed("pages", f"{what}: {' | '.join(lines[:SHOWN_LINES])}{more}")
        return
    found.passed("pages", "pg_amcheck found every table and index sound, with an index entry for each row")
