"""Measures how long migrations make writers wait, beside a plain session that runs the same statement as psql does."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from observatory.database import Event, deploy
from tests.support.postgres import PostgresServer

RATE, READER_S, WRITER_S, RETRIES = 300, 4.0, 6.0, 8
CHUNKS, CHUNK_ROWS = 10, 20_000
# An autovacuum of such a table sleeps after each page, so it works until it is cancelled.
SLOW_VACUUM = "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1, autovacuum_vacuum_threshold = 1"
BUSY = "CREATE TABLE busy (id bigint GENERATED ALWAYS AS IDENTITY, value text)"
WRITE = "INSERT INTO busy (value) VALUES ('x')"
ALTER = "ALTER TABLE busy ADD COLUMN extra text;\n"
HYPERTABLE = f"""
CREATE TABLE busy (id bigint GENERATED ALWAYS AS IDENTITY, value text, at timestamptz NOT NULL DEFAULT '2026-01-01');
SELECT create_hypertable('busy', by_range('at', INTERVAL '1 day'));
INSERT INTO busy (value, at) SELECT repeat('x', 100), timestamptz '2026-01-01' - n % {CHUNKS} * INTERVAL '1 day'
FROM generate_series(1, {CHUNKS * CHUNK_ROWS}) AS n;
"""  # noqa: S608 - constants
INDEX = "CREATE INDEX busy_value ON busy (value) WITH (timescaledb.transaction_per_chunk);\n"
VACUUMED = "SELECT 1 FROM pg_stat_activity WHERE backend_type = 'autovacuum worker' AND query ~ 'public.busy'"

Run = Callable[[str, Path], int]


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A writer on a table while a migration waits for a lock on it; waits in milliseconds.

    Attributes:
        seconds: duration of the migration.
        sent: transactions.
        failed: failed transactions.
        attempts: of the migration.
        longest_ms: the longest wait of a write.
        p50_ms: the median wait.
    """

    seconds: float
    sent: int
    failed: int
    attempts: int
    longest_ms: float
    p50_ms: float


@dataclass(frozen=True, kw_only=True)
class Locks:
    """A writer beside each kind of blocked migration, by this project and by a plain session.

    Attributes:
        reader: an ALTER beside a reader with a long transaction; by this project only.
        autovacuum: an ALTER beside an autovacuum, by `ours` and `plain`.
        index: an index by chunk beside a writer with a long transaction, by `ours` and `plain`.
    """

    reader: Writer
    autovacuum: dict[str, Writer]
    index: dict[str, Writer]

    @property
    def index_ratio(self) -> float:
        """The longest wait of a write by this project over that by a plain session."""
        return self.index["ours"].longest_ms / self.index["plain"].longest_ms


def measure(server: PostgresServer, directory: Path) -> Locks:
    """Measure all; the server's autovacuum starts within seconds."""
    return Locks(
        reader=_blocked(server, directory, table=BUSY, migration=ALTER, run=_ours, block=_reader),
        autovacuum={
            name: _blocked(
                server,
                directory,
                table=f"{BUSY} WITH ({SLOW_VACUUM})",
                migration=ALTER,
                run=run,
                block=_autovacuum,
            )
            for name, run in (("plain", _plain), ("ours", _ours))
        },
        index={
            name: _blocked(
                server,
                directory,
                table=HYPERTABLE,
                migration=f"-- transaction: false\n{INDEX}",
                run=run,
                block=_long_writer,
            )
            for name, run in (("plain", _plain), ("ours", _ours))
        },
    )


def _blocked(
    server: PostgresServer,
    directory: Path,
    *,
    table: str,
    migration: str,
    run: Run,
    block: Callable[[str], contextlib.AbstractContextManager[None]],
) -> Writer:
    """Run a migration on a new database while `block` holds a lock and other sessions write."""
    files = directory / f"blocked-{time.monotonic_ns()}"
    files.mkdir()
    (files / "001_table.sql").write_text(f"{table};\n")
    with server.fresh_database() as name:
        conninfo = server.conninfo(dbname=name)
        deploy(conninfo, migrations=files, actor="bench", deployment_id="bench", linted=False)
        (files / "002_blocked.sql").write_text(migration)
        with writing(conninfo) as (waits, failures), block(conninfo):
            started = time.monotonic()
            attempts = run(conninfo, files)
            seconds = time.monotonic() - started
    ordered = sorted(waits)
    return Writer(
        seconds=seconds,
        sent=len(waits),
        failed=len(failures),
        attempts=attempts,
        longest_ms=ordered[-1] * 1000,
        p50_ms=ordered[len(ordered) // 2] * 1000,
    )


def _ours(conninfo: str, files: Path) -> int:
    attempts = 1

    def count(event: Event) -> None:
        nonlocal attempts
        attempts += event.kind == "retrying"

    deploy(
        conninfo,
        migrations=files,
        actor="bench",
        deployment_id="bench",
        retry=RETRIES,
        linted=False,
        on_event=count,
    )
    return attempts


def _plain(conninfo: str, files: Path) -> int:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute((files / "002_blocked.sql").read_bytes())
    return 1


@contextlib.contextmanager
def _reader(conninfo: str) -> Iterator[None]:
    with _transaction(conninfo, "SELECT count(*) FROM busy", READER_S):
        yield


@contextlib.contextmanager
def _long_writer(conninfo: str) -> Iterator[None]:
    with _transaction(conninfo, WRITE, WRITER_S):
        yield


@contextlib.contextmanager
def _transaction(conninfo: str, statement: str, seconds: float) -> Iterator[None]:
    """Hold a transaction open that has run a statement; it ends after some seconds."""
    with psycopg.connect(conninfo) as session:
        session.execute(statement.encode())
        end = threading.Timer(seconds, session.commit)
        end.start()
        try:
            yield
        finally:
            end.join()


@contextlib.contextmanager
def _autovacuum(conninfo: str) -> Iterator[None]:
    """Wait until an autovacuum works on the table."""
    with psycopg.connect(conninfo, autocommit=True) as session:
        session.execute(b"INSERT INTO busy (value) SELECT repeat('x', 500) FROM generate_series(1, 20000)")
        session.execute(b"DELETE FROM busy")
        while not session.execute(VACUUMED).fetchone():
            time.sleep(0.05)
    yield


@contextlib.contextmanager
def writing(conninfo: str) -> Iterator[tuple[list[float], list[Exception]]]:
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
                    connection.execute(WRITE)
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
