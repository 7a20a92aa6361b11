"""Kills deployments of the schema at every step, and starts many at once: the schema is applied exactly once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from observatory.database import Deployment, Event, OnEvent, connect, deploy
from observatory.database.catalogue.objects import SETTINGS, read_objects
from observatory.workspace import Workspace
from proofs.record import Outcome
from tests.support.postgres import PostgresServer, community_server, postgres_server

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "migrations"
DEPLOYERS = 20
DEADLINE_S = 120
BOUNDARIES = ("applying", "statement", "applied")  # events after which a deployment is killed
KILLED = (
    "A deployment is killed before, between and after the statements of the shipped migrations and of a file without a "
    "transaction: the next one produces the schema and the ledger of an undisturbed run."
)
AT_ONCE = "20 processes deploy at the same time: one applies everything and 19 report that nothing is pending."

# Only VACUUM may run twice.
ONE_BY_ONE = """-- transaction: false
CREATE TABLE a (x int, y int);
SET maintenance_work_mem = '8MB';
CREATE INDEX CONCURRENTLY a_x ON a (x);
VACUUM a;
CREATE UNIQUE INDEX CONCURRENTLY a_y ON a (y);
DROP INDEX CONCURRENTLY a_x;
CREATE TABLE b (ts timestamptz NOT NULL);
SELECT create_hypertable('b', by_range('ts'));
INSERT INTO b VALUES ('2026-01-01'), ('2026-02-01');
CREATE INDEX b_ts ON b (ts) WITH (timescaledb.transaction_per_chunk);
"""

# For the community edition: an aggregate that is created with data, and a statement that uses it.
FILLED = """-- transaction: false
CREATE MATERIALIZED VIEW c WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
    SELECT time_bucket('1 day', ts) AS bucket, count(*) FROM b GROUP BY 1;
CREATE TABLE d AS SELECT 1 / (count(*) - 1) AS fails_unless_there_are_rows FROM c;
CALL refresh_continuous_aggregate('c', NULL, NULL);
"""


def prove_kills(rounds: int, share: int) -> Outcome:
    """Kill a deployment at every boundary of each set of files, in each installed edition."""
    outcome, begun, cases = Outcome(promise=KILLED), time.monotonic(), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="observatory-proof-") as directory:
        for edition, server in _servers():
            one_by_one = write_one_by_one(Path(directory) / edition, edition)
            for name, files in (("001-008", SHIPPED), ("transaction: false", one_by_one)):
                failures, tried = kill_everywhere(server, files, rounds=rounds, share=share)
                cases[f"{name}, {edition}"] += tried
                outcome.failures += [f"{name}, {edition}: {failure}" for failure in failures]
    outcome.failed = len(outcome.failures)
    outcome.passed = cases.total() - outcome.failed
    outcome.counts = {"one of so many boundaries is tried": share, "kills": dict(cases)}
    if not os.environ.get("OBSERVATORY_PG_PREFIX"):
        outcome.counts["skipped"] = "community edition: OBSERVATORY_PG_PREFIX names no installation"
    outcome.seconds = time.monotonic() - begun
    return outcome


def write_one_by_one(directory: Path, edition: str) -> Path:
    """Write migrations without a transaction for an edition, and return their directory."""
    directory.mkdir()
    (directory / "001_one_by_one.sql").write_text(ONE_BY_ONE)
    if edition == "community":
        (directory / "002_filled.community.sql").write_text(FILLED)
        (directory / "002_filled.apache.sql").write_text("SELECT 1;")
    return directory


def prove_at_once(rounds: int, share: int) -> Outcome:
    """Deploy the shipped migrations from 20 processes at once to an empty database, `rounds * share` times."""
    outcome, begun = Outcome(promise=AT_ONCE), time.monotonic()
    with postgres_server(_rootfs()) as server:
        for number in range(rounds * share):
            if broken := deploy_at_once(server):
                outcome.failures.append(f"round {number}: {broken}")
            outcome.passed += not broken
    outcome.failed, outcome.seconds = len(outcome.failures), time.monotonic() - begun
    outcome.counts = {"processes": DEPLOYERS}
    return outcome


def kill_everywhere(server: PostgresServer, files: Path, *, rounds: int, share: int) -> tuple[list[str], int]:
    """Kill at one of `share` boundaries, each in a new database; each round starts at another boundary.

    Returns:
        The failures, and the number of kills.
    """
    with _database(server) as conninfo:
        events: list[Event] = []
        _deploy(conninfo, files, on_event=events.append)
        undisturbed = _schema_and_ledger(conninfo)
    boundaries = sum(event.kind in BOUNDARIES for event in events)
    failures, tried = [], 0
    for number in range(rounds):
        for boundary in range(number % share, boundaries, share):
            tried += 1
            with _database(server) as conninfo:
                if problem := _kill_and_finish(conninfo, files, boundary, undisturbed):
                    failures.append(f"boundary {boundary} of {boundaries}: {problem}")
    return failures, tried


def _kill_and_finish(conninfo: str, files: Path, boundary: int, undisturbed: Any) -> str:
    command = [sys.executable, "-m", "proofs.migrations", conninfo, str(files), str(boundary)]
    died = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if died.returncode != -signal.SIGKILL:
        return f"was not killed but exited with {died.returncode}: {died.stderr}"
    try:
        _deploy(conninfo, files)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return (
        ""
        if _schema_and_ledger(conninfo) == undisturbed
        else "the schema or the ledger differs from that of an undisturbed run"
    )


def deploy_at_once(server: PostgresServer) -> str:
    """Deploy from 20 processes at once; return the failure, or an empty string."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    barrier, results = processes.Barrier(DEPLOYERS), processes.SimpleQueue()
    with _database(server) as conninfo:
        started = [processes.Process(target=_one_of_many, args=(conninfo, barrier, results)) for _ in range(DEPLOYERS)]
        for process in started:
            process.start()
        for process in started:
            process.join(DEADLINE_S)
        applied = sorted(results.get() for _ in started if not results.empty())
    expected = [0] * (DEPLOYERS - 1) + [8]
    return "" if applied == expected else f"numbers of files applied: {applied}"


def _one_of_many(conninfo: str, barrier: Any, results: Any) -> None:
    barrier.wait(DEADLINE_S)
    results.put(len(_deploy(conninfo, SHIPPED).applied))


def _deploy(conninfo: str, files: Path, on_event: OnEvent | None = None) -> Deployment:
    return deploy(conninfo, migrations=files, actor="proof", deployment_id="proof", retry=0, on_event=on_event)


def _schema_and_ledger(conninfo: str) -> tuple[dict[Any, str], list[tuple[Any, ...]]]:
    """Return the objects of the database, and the ledger without times."""
    with connect(conninfo, purpose="proof", settings=SETTINGS) as connection:
        ledger = "SELECT version, sha256, statements_done, statements_total, statement_running, statements_digest "
        rows = connection.execute(f"{ledger} FROM observatory.schema_migrations ORDER BY version".encode()).fetchall()
        invalid = connection.execute("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid").fetchall()
        return {**read_objects(connection)}, rows + invalid


@contextmanager
def _database(server: PostgresServer) -> Iterator[str]:
    with server.fresh_database() as name:
        yield server.conninfo(dbname=name)


def _servers() -> Iterator[tuple[str, PostgresServer]]:
    with postgres_server(_rootfs()) as server:
        yield "apache", server
    community = community_server(_rootfs())
    if community:
        with community as server:
            yield "community", server


def _rootfs() -> Path:
    return Workspace(root=ROOT, stack="local").ensure_rootfs()


def _die(conninfo: str, files: str, boundary: str) -> None:
    """Deploy, and kill this process at a boundary."""
    remaining = int(boundary)

    def kill(event: Event) -> None:
        nonlocal remaining
        remaining -= event.kind in BOUNDARIES
        if remaining < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    _deploy(conninfo, Path(files), on_event=kill)


if __name__ == "__main__":
    _die(*sys.argv[1:])
