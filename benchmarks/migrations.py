"""Measures migrations: the time of a run with nothing pending, of many small files and many statements.

`benchmarks.migration_locks` measures the waits of writers.

Compares with other tools in the same run and on the same server: psql, which runs each file in a transaction with an
insert into a ledger; alembic; yoyo; and sqitch where it is on PATH.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import alembic.command
import alembic.config
import psycopg
import yoyo  # type: ignore[import-untyped]
from psycopg.conninfo import conninfo_to_dict

from benchmarks import migration_locks
from observatory.database import connect, deploy
from observatory.database.migration_session import server_edition
from observatory.database.migrations.applying import Applier  # noqa: F401 - not measured, like the imports of alembic and yoyo
from observatory.database.migrations.history import read_history
from observatory.runtime import bubblewrap
from observatory.workspace import Workspace
from tests.support.checkout import Checkout
from tests.support.postgres import BINARIES, PostgresServer, postgres_server

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "docs/benchmarks-migrations.md"
TEMPLATE = Path(__file__).with_name("migrations.md")
SIZES, CHECKS = (1000, 5000), 100
FILES, ROUNDS = 1000, 3
STATEMENTS, COMMAND_RUNS, TARGET_S = 3000, 5, 1.5
COMMANDS = {"deploy database": ("deploy", "database"), "deploy database --dry-run": ("deploy", "database", "--dry-run")}
# As on a server in use; the server of the tests has fsync off.
SETTINGS = {"fsync": "on", "log_statement": "none", "max_wal_size": "4GB", "autovacuum_naptime": "2s"}


@dataclass(frozen=True, kw_only=True)
class Migrations:
    """The measurements.

    Attributes:
        checks_ms: p95 of a run with nothing pending on an open connection, by the number of files.
        tools_s: seconds of each round for `FILES` small files, by tool; None where the tool is not installed.
        commands_s: seconds of whole commands with nothing pending, by command.
        statements_s: seconds of a file of `STATEMENTS` statements without a transaction, by tool.
        locks: waits of writers beside blocked migrations.
    """

    checks_ms: dict[int, float]
    tools_s: dict[str, list[float] | None]
    commands_s: dict[str, list[float]]
    statements_s: dict[str, float]
    locks: migration_locks.Locks


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
        return Migrations(
            checks_ms=checks,
            tools_s=_tools(server, files),
            commands_s=_commands(),
            statements_s=_statements(server, Path(directory)),
            locks=migration_locks.measure(server, Path(directory)),
        )


def write(machine: str, commit: str) -> str:
    """Measure, write docs/benchmarks-migrations.md, and return its text."""
    measured = measure()
    locks = measured.locks
    report = TEMPLATE.read_text().format(
        machine=machine,
        commit=commit,
        count=CHECKS,
        runs=COMMAND_RUNS,
        checks=measured.checks_ms,
        tools="\n".join(_tool_row(name, seconds, measured.tools_s) for name, seconds in measured.tools_s.items()),
        commands="\n".join(
            f"| `observatory {name}` | {TARGET_S} s or less | {median(taken)} |"
            for name, taken in measured.commands_s.items()
        ),
        ratio=_ratio(measured.tools_s),
        statements=measured.statements_s,
        reader=locks.reader,
        autovacuum=locks.autovacuum,
        index=locks.index,
        index_ratio=locks.index_ratio,
    )
    REPORT.write_text(report)
    return report


def _ratio(tools: dict[str, list[float] | None]) -> float:
    """Return this project's best round, without the linter that psql does not have, over that of psql."""
    return min(tools["observatory, not linted"] or [0.0]) / min(tools["psql"] or [1.0])


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
        deploy(conninfo, migrations=directory, actor="bench", deployment_id="bench", linted=False)
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
        "observatory, not linted": (_ours_unlinted, files),
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


def _ours_unlinted(server: PostgresServer, database: str, files: Path) -> None:
    deploy(server.conninfo(dbname=database), migrations=files, actor="bench", deployment_id="bench", linted=False)


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
    _run_psql(server, database, "\n".join(script))


def _run_psql(server: PostgresServer, database: str, script: str) -> None:
    command = [f"{BINARIES}/psql", "-qX", "-v", "ON_ERROR_STOP=1", "-h", "/srv/run", "-p", str(server.port)]
    command += ["-U", "postgres", "-d", database]
    entered = bubblewrap.command(
        server.rootfs,
        bubblewrap.entry(server.rootfs, server.directory),
        command,
        mounts=["--bind", str(server.directory), "/srv"],
    )
    subprocess.run(entered, input=script, text=True, check=True, stdout=subprocess.DEVNULL)


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


def _statements(server: PostgresServer, directory: Path) -> dict[str, float]:
    """Return the seconds of a file of many statements without a transaction, by this project and by psql."""
    files = directory / "statements"
    files.mkdir()
    rows = [f"INSERT INTO filled VALUES ({number});" for number in range(STATEMENTS)]  # noqa: S608 - numbers
    script = "\n".join(["CREATE TABLE filled (n int);", *rows])
    (files / "001_filled.sql").write_text(f"-- transaction: false\n{script}\n")
    taken: dict[str, float] = {}
    with server.fresh_database() as database:
        taken["observatory"] = _timed(lambda: _ours(server, database, files))
    with server.fresh_database() as database:
        taken["psql"] = _timed(lambda: _run_psql(server, database, script))
    return taken


def _commands() -> dict[str, list[float]]:
    """Return the seconds of whole commands on a stack where nothing is pending, without the first run of each."""
    with tempfile.TemporaryDirectory(prefix="observatory-bench-") as directory:
        checkout = Checkout.copy(
            Path(directory) / "checkout", rootfs=Workspace(root=ROOT, stack="local").ensure_rootfs()
        )
        try:
            checkout.run("up", "--engine", "embedded")
            return {
                shown: [_timed(lambda: checkout.run(*words)) for _ in range(COMMAND_RUNS + 1)][1:]  # noqa: B023 - called at once
                for shown, words in COMMANDS.items()
            }
        finally:
            checkout.kill_all()


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def median(values: list[float]) -> str:
    """Return `median (min-max)` in seconds."""
    return f"{statistics.median(values):.2f} s ({min(values):.2f}-{max(values):.2f})"


def _p95(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.95)]
