"""Backup, restore, drill and rollback of databases of several sizes, beside pgBackRest's own time.

`python -m benchmarks backups --sizes 1,5,10` measures each size on a stack of its own, keeps its result in
docs/benchmarks-backups.json, and writes docs/benchmarks-backups.md from all results.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from psycopg.conninfo import make_conninfo
from pydantic import BaseModel, ConfigDict, TypeAdapter

from benchmarks.backup_data import GB, SEGMENT_BYTES, Client, Database
from benchmarks.watched import Watched, watch
from observatory.backups import cover
from observatory.backups.target import RecoveryTarget
from observatory.files.atomic import write_file
from observatory.nodes.pgbackrest import BIN, PROGRAM
from observatory.operations import database_rollback
from observatory.runtime import Sandbox
from observatory.workspace import Workspace
from proofs.record import commit, machine
from tests.support.checkout import SOURCE, Checkout

PAGE = SOURCE / "docs/benchmarks-backups.md"
RESULTS = PAGE.with_suffix(".json")
TEMPLATE = Path(__file__).with_suffix(".md")
SIZES = (1.0, 5.0, 10.0)  # GB
ROLLBACK_GB = 1.0  # the largest size that is rolled back
SEGMENTS_PER_GB = 44  # of WAL between the backup and the target of a rollback
DISK_PER_BYTE, DISK_SPARE = 4, 2 * GB
BACKUP = {"backup": f"^{PROGRAM} .* backup "}
RESTORE = {"restore": f"^{PROGRAM} .* restore ", "postgres": f"^{BIN}/postgres -D /srv/data/restore/"}


class Result(BaseModel):
    """A measurement; times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Backup(Result):
    """A backup to one repository: the whole command, and pgBackRest's backup in it."""

    seconds: float
    tool: float
    database_bytes: int
    stored_bytes: int


class Restore(Result):
    """A flashback clone: the whole command, pgBackRest's restore in it, and PostgreSQL from its start to the target."""

    seconds: float
    readable: float
    tool: float
    replay: float
    segments: int
    database_bytes: int
    estimated: float

    @property
    def added(self) -> float:
        """Seconds that neither pgBackRest nor PostgreSQL took."""
        return self.seconds - self.tool - self.replay


class Rollback(Result):
    """A rollback to a time, with its steps; `waited` is the longest time in which no write of a client succeeded."""

    seconds: float
    estimated: float
    segments: int
    tool: float
    replay: float
    compare: float
    lost_rows: int
    waited: float
    writes: int
    failed: int

    @property
    def exchange(self) -> float:
        """Seconds of everything else: the start of the command, the exchange, and `up`."""
        return self.seconds - self.tool - self.replay - self.compare


class Drill(Result):
    """A restore drill: the whole command, and the time until the database could be read at the target."""

    seconds: float
    rto: float


class Size(Result):
    """What was measured with a database of `gigabytes`; `rollback` is None where it is too large for one."""

    gigabytes: float
    commit: str
    machine: str
    when: str
    rows: int
    full: Backup
    changed: int
    incremental: Backup
    restore: Restore
    drill: Drill
    rollback: Rollback | None


def write(sizes: Sequence[float] = SIZES) -> str:
    """Measure the sizes, one after the other, and write the page after each; return it."""
    for size in sizes:
        _keep(measure(size))
    page = _page(_kept())
    write_file(PAGE, page, mode=0o644)
    return page


def measure(gigabytes: float) -> Size:
    """Measure a size on a new stack, which is removed with all its files."""
    with tempfile.TemporaryDirectory(prefix="observatory-bench-") as directory:
        _check_disk(Path(directory), gigabytes)
        rootfs = Workspace(root=SOURCE, stack="local").ensure_rootfs()
        checkout = Checkout.copy(Path(directory) / "checkout", rootfs=rootfs)
        try:
            checkout.run("up", "--engine", "embedded")
            return _measure(checkout, Sandbox(checkout.home, rootfs), gigabytes)
        finally:
            checkout.kill_all()


def _check_disk(directory: Path, gigabytes: float) -> None:
    needed, free = DISK_PER_BYTE * gigabytes * GB + DISK_SPARE, shutil.disk_usage(directory).free
    if free < needed:
        raise SystemExit(
            f"{gigabytes:g} GB need {needed / GB:.0f} GB of the disk of {directory}; {free / GB:.0f} are free"
        )


def _measure(checkout: Checkout, sandbox: Sandbox, gigabytes: float) -> Size:
    database = Database(make_conninfo(checkout.output("admin_database_url"), dbname="observatory"))
    rows, segments = database.fill(round(gigabytes * GB)), round(SEGMENTS_PER_GB * gigabytes) * SEGMENT_BYTES
    full = _back_up(checkout, "full")
    changed = database.change()
    begin = database.position()
    incremental = _back_up(checkout, "incremental")
    restore = _restore(checkout, sandbox, database.now())
    drill = watch(checkout, "backup", "restore-test", "--repository", "1", programs={})
    return Size(
        gigabytes=gigabytes,
        commit=commit(),
        machine=machine(),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=rows,
        full=full,
        changed=changed,
        incremental=incremental,
        restore=restore,
        drill=Drill(seconds=drill.seconds, rto=drill.document["rto_seconds"]),
        rollback=_roll_back(checkout, database, until=begin + segments) if gigabytes <= ROLLBACK_GB else None,
    )


def _back_up(checkout: Checkout, kind: str) -> Backup:
    done = watch(checkout, "backup", "create", "--type", kind, "--repository", "1", programs=BACKUP)
    [made] = done.document
    return Backup(
        seconds=done.seconds,
        tool=done.programs["backup"].seconds,
        database_bytes=made["database_bytes"],
        stored_bytes=made["repository_bytes"],
    )


def _restore(checkout: Checkout, sandbox: Sandbox, at: str) -> Restore:
    """Open a clone and close it."""
    found = cover.find_cover(sandbox, RecoveryTarget.parse(at), repository=1)
    done = watch(checkout, "backup", "flashback", "--to-time", at, programs=RESTORE)
    clone = done.document["clone"]
    readable = datetime.fromisoformat(clone["opened"]).timestamp() - done.started
    checkout.run("backup", "flashback", "close", clone["name"])
    return Restore(
        seconds=done.seconds,
        readable=readable,
        tool=done.programs["restore"].seconds,
        replay=readable - done.programs["postgres"].began,
        segments=found.replayed,
        database_bytes=found.database_bytes,
        estimated=found.estimated_s,
    )


def _roll_back(checkout: Checkout, database: Database, *, until: int) -> Rollback:
    """Write WAL up to a position, roll back to there, and lose what is changed afterwards."""
    database.write_wal(until)
    at = database.now()
    database.change()
    with Client(checkout.output("database_url")) as client:
        done = watch(
            checkout, "rollback", "--method", "database", "--to-time", at, "--yes", "--reason", "benchmark",
            programs=RESTORE,
        )  # fmt: skip
    plan = done.document["plan"]
    began, ended = _comparison(done)
    return Rollback(
        seconds=done.seconds,
        estimated=plan["estimated_s"],
        segments=plan["segments"],
        tool=done.programs["restore"].seconds,
        replay=began - done.programs["postgres"].began,
        compare=ended - began,
        lost_rows=sum(each["lost"] for each in plan["loss"]["tables"]),
        waited=client.longest_s,
        writes=client.writes,
        failed=client.failed,
    )


def _comparison(done: Watched) -> tuple[float, float]:
    return done.printed("… compare with the live database"), done.printed("✓ compare with the live database")


def _kept() -> list[Size]:
    """Return the results so far, the smallest size first."""
    return _SIZES.validate_json(RESULTS.read_text()) if RESULTS.exists() else []


def _keep(measured: Size) -> None:
    """Put a result in the place of an earlier one of its size."""
    others = [each for each in _kept() if each.gigabytes != measured.gigabytes]
    found = sorted([*others, measured], key=lambda each: each.gigabytes)
    write_file(RESULTS, _SIZES.dump_json(found, indent=2).decode() + "\n", mode=0o644)


_SIZES = TypeAdapter(list[Size])


def _page(sizes: Sequence[Size]) -> str:
    return TEMPLATE.read_text().format(
        measured="\n".join(f"- {each.gigabytes:g} GB: commit {each.commit}; {each.machine}." for each in sizes),
        costs=_table(COSTS, sizes, lambda each: f"{each.gigabytes:g} GB"),
        rollbacks=_table(ROLLBACKS, [each for each in sizes if each.rollback], lambda each: f"{each.gigabytes:g} GB"),
        assumed=_table(ASSUMED, sizes, lambda each: f"{each.gigabytes:g} GB"),
        segments=SEGMENTS_PER_GB,
    )


Row = tuple[str, str, Callable[[Size], str]]


def _table(rows: Iterable[Row], sizes: Sequence[Size], name: Callable[[Size], str]) -> str:
    """Return a table with a column for each size."""
    lines = [("what", "target", *(name(each) for each in sizes)), ("---",) * (len(sizes) + 2)]
    lines += [(what, target, *(cell(each) for each in sizes)) for what, target, cell in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _s(seconds: float) -> str:
    return f"{seconds:.1f} s"


def _gb(number: int) -> str:
    return f"{number / GB:.2f} GB"


def _of_estimate(seconds: float, estimated: float) -> str:
    return f"{estimated:.0f} s, {estimated / seconds:.2f} of it"


COSTS: tuple[Row, ...] = (
    ("rows", "", lambda each: f"{each.rows:,}"),
    ("cluster in the backup", "", lambda each: _gb(each.full.database_bytes)),
    ("**full backup**, whole command", "", lambda each: _s(each.full.seconds)),
    ("of which pgBackRest", "", lambda each: f"{_s(each.full.tool)}, {_rate(each.full):.0f} MB/s"),
    ("added", "2 s or less", lambda each: _s(each.full.seconds - each.full.tool)),
    ("stored", "", lambda each: _gb(each.full.stored_bytes)),
    ("rows changed before the incremental backup", "1 %", lambda each: f"{each.changed:,}"),
    ("**incremental backup**, whole command", "60 s or less at 10 GB", lambda each: _s(each.incremental.seconds)),
    ("of which pgBackRest", "", lambda each: _s(each.incremental.tool)),
    ("added", "2 s or less", lambda each: _s(each.incremental.seconds - each.incremental.tool)),
    ("stored", "", lambda each: _gb(each.incremental.stored_bytes)),
    ("**flashback clone**, readable after", "20 s or less at 1 GB", lambda each: _s(each.restore.readable)),
    ("of which pgBackRest", "", lambda each: f"{_s(each.restore.tool)}, {_restored(each):.0f} MB/s"),
    ("of which PostgreSQL", "", lambda each: f"{_s(each.restore.replay)}, {each.restore.segments} segments"),
    ("added to the whole command", "2 s or less", lambda each: _s(each.restore.added)),
    ("estimate", "0.5 to 2", lambda each: _of_estimate(each.restore.readable, each.restore.estimated)),
    ("**restore drill**, whole command", "", lambda each: _s(each.drill.seconds)),
    ("of which until the database can be read", "", lambda each: _s(each.drill.rto)),
)


def _rate(backup: Backup) -> float:
    return backup.database_bytes / backup.tool / 1e6


def _restored(size: Size) -> float:
    return size.restore.database_bytes / size.restore.tool / 1e6


def _of_rollback(text: Callable[[Rollback], str]) -> Callable[[Size], str]:
    """Return a cell of a size that was rolled back."""
    return lambda each: text(each.rollback) if each.rollback else ""


ROLLBACKS: tuple[Row, ...] = tuple(
    (what, target, _of_rollback(text))
    for what, target, text in (
        ("WAL segments", "50 or fewer", lambda each: str(each.segments)),
        ("rows that are lost", "", lambda each: f"{each.lost_rows:,}"),
        ("**rollback**, whole command", "30 s or less", lambda each: _s(each.seconds)),
        ("of which pgBackRest", "", lambda each: _s(each.tool)),
        ("of which replay", "", lambda each: f"{_s(each.replay)}, {each.segments / each.replay:.0f} segments a second"),
        ("of which comparison", "", lambda each: _s(each.compare)),
        ("of which all else: exchange, `up`", "", lambda each: _s(each.exchange)),
        ("estimate", "0.5 to 2", lambda each: _of_estimate(each.seconds, each.estimated)),
        ("longest time without a write of the client", "10 s or less", lambda each: _s(each.waited)),
        ("writes of the client, failed", "", lambda each: f"{each.writes}, {each.failed}"),
    )
)
ASSUMED: tuple[Row, ...] = (
    ("restore", f"{cover.RESTORED_BYTES_PER_S / 1e6:.0f} MB/s", lambda each: f"{_restored(each):.0f} MB/s"),
    ("replay", f"{cover.REPLAYED_SEGMENTS_PER_S} segments a second",
     _of_rollback(lambda each: f"{each.segments / each.replay:.1f}")),
    ("everything else of a clone", f"{cover.START_S} s", lambda each: _s(each.restore.added)),
    ("comparison", f"{database_rollback.COMPARED_BYTES_PER_S / 1e6:.0f} MB/s",
     lambda each: f"{each.restore.database_bytes / each.rollback.compare / 1e6:.0f} MB/s" if each.rollback else ""),
    ("exchange and `up`", f"{database_rollback.EXCHANGE_S} s", _of_rollback(lambda each: _s(each.exchange))),
)  # fmt: skip
