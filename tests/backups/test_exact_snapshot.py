"""A snapshot of the tables has exactly the transactions that the WAL has before its place, while others write."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from observatory.backups.exact_snapshot import ExactSnapshot, ValuesNotRecordedError, exact_snapshot
from tests.support.postgres import PostgresServer, postgres_server

ROUNDS = 15
SCHEMA = """
    CREATE TABLE events (ts timestamptz NOT NULL, writer xid8 NOT NULL DEFAULT pg_current_xact_id());
    SELECT create_hypertable('events', by_range('ts', INTERVAL '1 day'));
    CREATE TABLE users (id serial PRIMARY KEY, writer xid8 NOT NULL DEFAULT pg_current_xact_id());
    CREATE TABLE notes (id serial PRIMARY KEY, writer xid8 NOT NULL DEFAULT pg_current_xact_id());
    INSERT INTO events (ts) SELECT '2026-01-01'::timestamptz + n * INTERVAL '1 day' FROM generate_series(0, 3) n;
    CREATE EXTENSION pg_walinspect;
"""
# The committed transactions, each with its place in the WAL.
COMMITTED = """
    SELECT xid::text, start_lsn::text FROM pg_get_wal_records_info(%s, pg_current_wal_flush_lsn())
    WHERE resource_manager = 'Transaction' AND record_type LIKE 'COMMIT%%'
"""
Transaction = Callable[[psycopg.Connection, random.Random], None]


def _insert(connection: psycopg.Connection, dice: random.Random) -> None:
    for table in dice.sample(["events", "users", "notes"], k=2):
        if table == "events":
            connection.execute("INSERT INTO events (ts) VALUES (now() + %s * INTERVAL '1 day')", [dice.randrange(5)])
        else:
            connection.execute(sql.SQL("INSERT INTO {} DEFAULT VALUES").format(sql.Identifier(table)))


def _write_to_a_chunk(connection: psycopg.Connection, dice: random.Random) -> None:
    """Write past the hypertable, which takes no lock on it."""
    [(schema, name)] = connection.execute(
        "SELECT schema_name, table_name FROM _timescaledb_catalog.chunk ORDER BY id LIMIT 1 OFFSET %s",
        [dice.randrange(4)],
    )
    connection.execute(
        sql.SQL("INSERT INTO {} (ts) SELECT min(ts) FROM {}").format(*[sql.Identifier(schema, name)] * 2)
    )


@contextlib.contextmanager
def _writing(conninfo: str, *transactions: Transaction) -> Iterator[dict[Transaction, set[str]]]:
    """Run each transaction again and again in a session of its own; yields the identifiers of what committed."""
    ended, errors, committed = threading.Event(), list[BaseException](), {each: set[str]() for each in transactions}

    def write(transaction: Transaction, seed: int) -> None:
        dice = random.Random(seed)  # noqa: S311 - not a secret
        try:
            with psycopg.connect(conninfo, autocommit=True) as connection:
                while not ended.wait(dice.uniform(0, 0.02)):
                    with connection.transaction():
                        transaction(connection, dice)
                        [(xid,)] = connection.execute("SELECT pg_current_xact_id()::text")
                    committed[transaction].add(xid)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(each, seed)) for seed, each in enumerate(transactions)]
    for thread in threads:
        thread.start()
    try:
        yield committed
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert errors == []


@pytest.fixture(scope="module")
def slow_server(rootfs: Path) -> Iterator[PostgresServer]:
    """A server on which each commit is in the WAL 20 ms before other sessions see it, as with a synchronous standby.

    A busy machine may not end the wait of a snapshot within a second, in which PostgreSQL would end a writer's instead.
    The WAL of a test is kept over a checkpoint.
    """
    slow = {"fsync": "on", "commit_delay": "20000", "commit_siblings": "0"}
    with postgres_server(rootfs, **slow, deadlock_timeout="10min", wal_keep_size="1GB") as server:
        yield server


@pytest.fixture
def database(slow_server: PostgresServer) -> Iterator[str]:
    with slow_server.fresh_database() as name:
        with slow_server.superuser(name) as connection:
            connection.execute(SCHEMA)
        yield slow_server.conninfo(dbname=name)


def test_a_snapshot_has_exactly_what_the_wal_has_before_its_place(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        [(begin,)] = connection.execute("SELECT pg_current_wal_flush_lsn()::text")
        found, tables = list[tuple[str, set[str], frozenset[str]]](), set[str]()
        with _writing(database, _insert, _insert, _insert, _write_to_a_chunk) as writers:
            while not _is_enough(found):
                with exact_snapshot(database, patience_s=120) as snapshot:
                    found.append((snapshot.lsn, _writers_in(database, snapshot), snapshot.left_out))
                    tables |= {table.qualified for table in snapshot.tables}

        committed = {xid: _place(lsn) for xid, lsn in connection.execute(COMMITTED, [begin])}
    past = writers[_write_to_a_chunk]
    for lsn, seen, left_out in found:
        before = {xid for xid, place in committed.items() if place < _place(lsn)}
        assert seen & writers[_insert] == before & writers[_insert]  # each has a row in a table that is never left out
        assert seen & past == before & past if not left_out else seen & past <= before
        assert not left_out & {"public.users", "public.notes"}
    assert {"public.users", "public.notes"} < tables
    assert not any(name == "public.events" for name in tables)


def _is_enough(found: list[tuple[str, set[str], frozenset[str]]]) -> bool:
    """Return whether others did write meanwhile, and one snapshot has all tables: a chunk may be busy each time."""
    states = {frozenset(seen) for _, seen, _ in found}
    return len(found) >= ROUNDS and len(states) > ROUNDS / 2 and not all(left_out for *_, left_out in found)


def _writers_in(conninfo: str, snapshot: ExactSnapshot) -> set[str]:
    """Return the transactions whose rows a snapshot has."""
    seen = set[str]()
    with psycopg.connect(conninfo) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot.identifier)))
        for table in snapshot.tables:
            name = sql.Identifier(table.schema, table.name)
            seen |= {xid for (xid,) in reader.execute(sql.SQL("SELECT writer::text FROM ONLY {}").format(name))}
    return seen


def _place(lsn: str) -> int:
    high, low = lsn.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def test_writers_wait_only_while_the_snapshot_is_taken(database: str) -> None:
    with exact_snapshot(database, patience_s=120), psycopg.connect(database) as writer:
        writer.execute("SET lock_timeout = '60s'")
        writer.execute("INSERT INTO users DEFAULT VALUES")
        writer.execute("INSERT INTO events (ts) VALUES (now())")


def test_a_transaction_that_does_not_end_prevents_a_snapshot_and_is_not_disturbed(database: str) -> None:
    with psycopg.connect(database) as writer:
        writer.execute("INSERT INTO users DEFAULT VALUES")
        with pytest.raises(ValuesNotRecordedError, match="other sessions"), exact_snapshot(database, patience_s=0.5):
            pass
        writer.execute("INSERT INTO users DEFAULT VALUES")


def test_a_chunk_that_is_written_past_its_hypertable_is_left_out(database: str) -> None:
    with psycopg.connect(database) as writer:
        [(schema, name)] = writer.execute("SELECT schema_name, table_name FROM _timescaledb_catalog.chunk LIMIT 1")
        writer.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(schema, name)))
        with exact_snapshot(database, patience_s=60) as snapshot:
            assert snapshot.left_out == {f"{schema}.{name}"}
            assert f"{schema}.{name}" not in {each.qualified for each in snapshot.tables}
            assert len([each for each in snapshot.tables if each.kind == "chunk"]) == 3


def test_a_database_without_timescaledb_has_only_tables(slow_server: PostgresServer) -> None:
    with slow_server.fresh_database(extensions=False) as name:
        with slow_server.superuser(name) as connection:
            connection.execute("CREATE TABLE kept (); CREATE UNLOGGED TABLE lost ()")
        with exact_snapshot(slow_server.conninfo(dbname=name), patience_s=120) as snapshot:
            assert [each.qualified for each in snapshot.tables] == ["public.kept"]
