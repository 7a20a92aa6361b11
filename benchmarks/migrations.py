"""Measures migrations: the time of a run with nothing pending, of many small files, and the waits of writers.

Compares with other tools in the same run and on the same server: psql, which runs each file in a transaction with an
insert into a ledger; alembic; yoyo; and sqitch where it is on PATH.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import alembic.command
import alembic.config
import psycopg
import yoyo  # type: ignore[import-untyped]
from psycopg.conninfo import conninfo_to_dict

from observatory.database import Event, connect, deploy
from observatory.database.migration_session import server_edition
from observatory.database.migrations.applying import Applier  # noqa: F401 - not measured, like the imports of alembic and yoyo
from observatory.database.migrations.history import read_history
from observatory.runtime import bubblewrap
from observatory.workspace import Workspace
from tests.support.postgres import BINARIES, PostgresServer, postgres_server

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "docs/benchmarks-migrations.md"
TEMPLATE = Path(__file__).with_name("migrations.md")
SIZES, CHECKS = (1000, 5000), 100
FILES, ROUNDS = 1000, 3
RATE, READER_S, RETRIES = 300, 4.0, 8
# As on a server in use; the server of the tests has fsync off.
SETTINGS = {"fsync": "on", "log_statement": "none", "max_wal_size": "4GB"}


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A writer on a table while an ALTER waits for a long reader; waits in milliseconds.

    Attributes:
        sent: transactions.
        failed: failed transactions.
        attempts: of the ALTER.
        longest_ms: the longest wait of a write.
        p50_ms: the median wait.
    """

    sent: int
    failed: int
    attempts: int
    longest_ms: float
    p50_ms: float


@dataclass(frozen=True, kw_only=True)
class Migrations:
    """The measurements.

    Attributes:
        checks_ms: p95 of a run with nothing pending on an open connection, by the number of files.
        tools_s: seconds of each round for `FILES` small files, by tool; None where the tool is not installed.
        writer: waits during a blocked ALTER.
    """

    checks_ms: dict[int, float]
    tools_s: dict[str, list[float] | None]
    writer: Writer


def measure() -> Migrations:
    """Measure on a new server."""
    rootfs = Workspace(root=ROOT, stack="local").ensure_rootfs()
    with (
        postgres_server(rootfs, **SETTINGS) as server,
        tempfile.TemporaryDirectory(dir=server.directory, prefix="files-") as directory,
    ):
        Path(directory).chmod(0o755)
        checks = {size: _check(server, Path(directory) / f"checked-{size}", size) for size in SIZES}
        files = _write_files(Path(directory) / "applied", FILES)
        return Migrations(checks_ms=checks, tools_s=_tools(server, files), writer=_writer(server, Path(directory)))


def write(machine: str, commit: str) -> str:
    """Measure, write docs/benchmarks-migrations.md, and return its text."""
    measured = measure()
    writer = measured.writer
    report = TEMPLATE.read_text().format(
        machine=machine,
        commit=commit,
        count=CHECKS,
        checks=measured.checks_ms,
        tools="\n".join(_tool_row(name, seconds, measured.tools_s) for name, seconds in measured.tools_s.items()),
        writer=writer,
    )
    REPORT.write_text(report)
    return report


def _tool_row(name: str, seconds: list[float] | None, all_of_them: dict[str, list[float] | None]) -> str:
    if seconds is None:
        return f"| {name} | not installed | |"
    psql = min(all_of_them["psql"] or [0.0])
    over = (min(seconds) - psql) / FILES * 1000
    shown = ", ".join(f"{each:.2f}" for each in seconds)
    return f"| {name} | {shown} s | {over:+.2f} ms |"


def _write_files(directory: Path, count: int) -> Path:
    directory.mkdir()
    for number in range(1, count + 1):
        (directory / f"{number:04d}_small.sql").write_text(f"CREATE TABLE small_{number} (id bigint, value text);\n")
    return directory


def _check(server: PostgresServer, directory: Path, size: int) -> float:
    """Apply many small files, then measure runs with nothing pending."""
    directory.mkdir()
    for number in range(1, size + 1):
        (directory / f"{number:04d}_small.sql").write_text(f"SELECT {number};\n")
    with server.fresh_database() as name:
        conninfo = server.conninfo(dbname=name)
        deploy(conninfo, migrations=directory, actor="bench", deployment_id="bench")
        with connect(conninfo, purpose="bench") as connection:
            return _p95([_timed(lambda: _nothing_pending(connection, directory)) for _ in range(CHECKS)]) * 1000


def _nothing_pending(connection: psycopg.Connection, directory: Path) -> None:
    """Do what `deploy` does when nothing is pending."""
    edition = server_edition(connection, "dbname=bench")
    assert read_history(connection, directory=directory, edition=edition).pending == ()


def _tools(server: PostgresServer, files: Path) -> dict[str, list[float] | None]:
    """Run each tool in every round, in a different order, so that other load affects all tools."""
    tools: dict[str, tuple[Callable[[PostgresServer, str, Path], None], Path]] = {
        "observatory": (_ours, files),
        "psql": (_psql, files),
        "alembic": (_alembic, _alembic_project(files)),
        "yoyo": (_yoyo, files),
    }
    if shutil.which("sqitch"):
        tools["sqitch"] = (_sqitch, _sqitch_project(files))
    taken: dict[str, list[float]] = {name: [] for name in tools}
    for number in range(ROUNDS):
        order = list(tools)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            run, prepared = tools[name]
            with server.fresh_database() as database:
                taken[name].append(_timed(lambda: run(server, database, prepared)))  # noqa: B023 - called at once
                _count(server, database)
    return {**taken, "sqitch": taken.get("sqitch")}


def _count(server: PostgresServer, database: str) -> None:
    with server.superuser(database) as connection:
        query = "SELECT count(*) FROM pg_tables WHERE tablename ~ '^small_'"
        assert connection.execute(query).fetchone() == (FILES,)


def _ours(server: PostgresServer, database: str, files: Path) -> None:
    deploy(server.conninfo(dbname=database), migrations=files, actor="bench", deployment_id="bench")


def _psql(server: PostgresServer, database: str, files: Path) -> None:
    """Run all files in one psql, so that the start of psql does not count."""
    inside = Path("/srv") / files.relative_to(server.directory)
    script = ["CREATE TABLE ledger (name text PRIMARY KEY, applied_at timestamptz DEFAULT now());"]
    for file in sorted(files.glob("*.sql")):
        script += [
            "BEGIN;",
            f"\\i {inside / file.name}",
            f"INSERT INTO ledger (name) VALUES ('{file.name}');",  # noqa: S608 - generated names
            "COMMIT;",
        ]
    command = [f"{BINARIES}/psql", "-qX", "-v", "ON_ERROR_STOP=1", "-h", "/srv/run", "-p", str(server.port)]
    command += ["-U", "postgres", "-d", database]
    entered = bubblewrap.command(
        server.rootfs,
        bubblewrap.entry(server.rootfs, server.directory),
        command,
        mounts=["--bind", str(server.directory), "/srv"],
    )
    subprocess.run(entered, input="\n".join(script), text=True, check=True, stdout=subprocess.DEVNULL)


ALEMBIC_ENV = """
import os
import sqlalchemy
from alembic import context
engine = sqlalchemy.create_engine(os.environ["BENCH_URL"])
with engine.connect() as connection:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
"""


def _alembic_project(files: Path) -> Path:
    project = files.parent / "alembic"
    (project / "versions").mkdir(parents=True)
    (project / "env.py").write_text(ALEMBIC_ENV)
    before = None
    for number, file in enumerate(sorted(files.glob("*.sql")), start=1):
        revision = f"{number:04d}"
        text = f"from alembic import op\nrevision = {revision!r}\ndown_revision = {before!r}\n"
        text += f"def upgrade():\n    op.execute({file.read_text()!r})\n"
        (project / "versions" / f"{revision}.py").write_text(text)
        before = revision
    return project


def _alembic(server: PostgresServer, database: str, project: Path) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(project))
    os.environ["BENCH_URL"] = _url("postgresql+psycopg", server, database)
    alembic.command.upgrade(config, "head")


def _yoyo(server: PostgresServer, database: str, files: Path) -> None:
    backend = yoyo.get_backend(_url("postgresql+psycopg", server, database))
    with backend.lock():
        backend.apply_migrations(backend.to_apply(yoyo.read_migrations(str(files))))
    backend.connection.close()


def _url(scheme: str, server: PostgresServer, database: str) -> str:
    parts = conninfo_to_dict(server.conninfo(dbname=database))
    return f"{scheme}://{parts['user']}@/{database}?host={parts['host']}&port={parts['port']}"


def _sqitch_project(files: Path) -> Path:
    """Create a project with a change for each file."""
    project = files.parent / "sqitch"
    (project / "deploy").mkdir(parents=True)
    (project / "sqitch.conf").write_text("[core]\n\tengine = pg\n")
    plan = ["%syntax-version=1.0.0", "%project=bench", ""]
    for file in sorted(files.glob("*.sql")):
        shutil.copy(file, project / "deploy" / file.name)
        plan.append(f"{file.stem} 2026-01-01T00:00:00Z Bench <bench@localhost> # small")
    (project / "sqitch.plan").write_text("\n".join(plan) + "\n")
    return project


def _sqitch(server: PostgresServer, database: str, project: Path) -> None:
    command = ["sqitch", "deploy", "--quiet", _url("db:pg", server, database)]
    subprocess.run(command, cwd=project, check=True)


def _writer(server: PostgresServer, directory: Path) -> Writer:
    """Deploy an ALTER of a table that a reader locks for some seconds and that a writer writes to."""
    files = directory / "alter"
    files.mkdir()
    (files / "001_table.sql").write_text("CREATE TABLE busy (id bigint GENERATED ALWAYS AS IDENTITY, value text);\n")
    with server.fresh_database() as name:
        conninfo = server.conninfo(dbname=name)
        deploy(conninfo, migrations=files, actor="bench", deployment_id="bench")
        (files / "002_alter.sql").write_text("ALTER TABLE busy ADD COLUMN extra text;\n")
        attempts = 1

        def count(event: Event) -> None:
            nonlocal attempts
            attempts += event.kind == "retrying"

        with _writing(conninfo) as (waits, failures), _reading(conninfo):
            deploy(conninfo, migrations=files, actor="bench", deployment_id="bench", retry=RETRIES, on_event=count)
    ordered = sorted(waits)
    return Writer(
        sent=len(waits),
        failed=len(failures),
        attempts=attempts,
        longest_ms=ordered[-1] * 1000,
        p50_ms=ordered[len(ordered) // 2] * 1000,
    )


@contextlib.contextmanager
def _reading(conninfo: str) -> Iterator[None]:
    """Hold a transaction open that has read the table; it ends after some seconds."""
    with psycopg.connect(conninfo) as reader:
        reader.execute("SELECT count(*) FROM busy")
        end = threading.Timer(READER_S, reader.rollback)
        end.start()
        try:
            yield
        finally:
            end.join()


@contextlib.contextmanager
def _writing(conninfo: str) -> Iterator[tuple[list[float], list[Exception]]]:
    """Write at a fixed rate in separate threads; yield the waits and the failures."""
    waits: list[float] = []
    failures: list[Exception] = []
    stop = threading.Event()
    start = time.monotonic()

    def write(first: int, step: int) -> None:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            for number in range(first, 1_000_000, step):
                planned = start + number / RATE
                if stop.wait(max(0.0, planned - time.monotonic())):
                    return
                sent = time.monotonic()
                try:
                    connection.execute("INSERT INTO busy (value) VALUES ('x')")
                except psycopg.Error as error:
                    failures.append(error)
                waits.append(time.monotonic() - sent)

    threads = [threading.Thread(target=write, args=(first, 4)) for first in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield waits, failures
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _p95(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.95)]
