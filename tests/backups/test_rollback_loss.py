"""What a rollback would lose, by comparing two databases: the later one is a copy that was changed."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from observatory.backups.rollback.errors import RollbackRefusedError
from observatory.backups.rollback.loss import TableLoss, compare
from observatory.database.error_translation import translate_errors
from observatory.database.errors import StatementFailedError
from tests.support.postgres import PostgresServer, postgres_server
from tests.support.waiting import until

TABLES = """
    CREATE TABLE plain (id int PRIMARY KEY, note text);
    CREATE TABLE events (ts timestamptz NOT NULL, value double precision, tags jsonb);
    SELECT create_hypertable('events', 'ts', chunk_time_interval => interval '1 day');
    CREATE TABLE parted (id int NOT NULL, note text) PARTITION BY LIST (id);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
    CREATE SCHEMA "odd name";
    CREATE TABLE "odd name"."odd table" ("odd column" text);
    INSERT INTO plain SELECT n, 'note' FROM generate_series(1, 100) n;
    INSERT INTO events SELECT '2026-01-01Z'::timestamptz + n * interval '1 hour', 0.1 * n, '{"a": 1}'
    FROM generate_series(1, 48) n;
    INSERT INTO parted VALUES (1, 'a');
    INSERT INTO "odd name"."odd table" VALUES ('x'), ('x'), (NULL);
"""


@dataclass
class Pair:
    """Connection strings of the live and the restored database."""

    live: str
    restored: str

    def change(self, statement: str) -> None:
        with psycopg.connect(self.live, autocommit=True) as connection:
            connection.execute(statement.encode())

    def losses(self) -> dict[str, tuple[int, int, int, int]]:
        return {each.table: (each.now, each.then, each.lost, each.returned) for each in self.compare()}

    def compare(self) -> tuple[TableLoss, ...]:
        return compare(self.live, self.restored).tables


@pytest.fixture
def pair(postgres: PostgresServer) -> Iterator[Pair]:
    with _pair(postgres) as both:
        yield both


@contextlib.contextmanager
def _pair(server: PostgresServer) -> Iterator[Pair]:
    with server.fresh_database() as live, server.fresh_database() as restored:
        both = Pair(live=server.conninfo(dbname=live), restored=server.conninfo(dbname=restored))
        for conninfo in (both.live, both.restored):
            with psycopg.connect(conninfo, autocommit=True) as connection:
                connection.execute(TABLES)
        yield both


def test_equal_databases_lose_nothing(pair: Pair) -> None:
    assert pair.losses() == {}


def test_tables_that_were_made_since_are_named_without_rows_too(pair: Pair) -> None:
    pair.change("CREATE TABLE fresh (ts timestamptz NOT NULL); SELECT create_hypertable('fresh', 'ts')")
    pair.change('CREATE TABLE "odd name".added (); DROP TABLE plain')

    loss = compare(pair.live, pair.restored)
    assert loss.made_since == ("odd name.added", "fresh")
    assert [each.table for each in loss.tables] == ["plain"]


def test_unlogged_tables_and_other_databases_are_named_for_no_backup_and_no_row_shows_them(pair: Pair) -> None:
    pair.change("CREATE UNLOGGED TABLE cache AS SELECT 1 AS n; CREATE UNLOGGED TABLE empty_cache ()")
    loss = compare(pair.live, pair.restored)
    assert (loss.emptied, loss.made_since) == (("cache",), ("cache", "empty_cache"))
    assert conninfo_to_dict(pair.restored)["dbname"] in loss.databases
    of_dump = compare(pair.live, pair.restored, same_server=False)
    assert (of_dump.emptied, of_dump.databases) == ((), ())


def test_added_changed_and_deleted_rows_are_counted_for_each_table(pair: Pair) -> None:
    pair.change("INSERT INTO plain VALUES (101, 'new'), (102, 'new')")
    pair.change("UPDATE plain SET note = 'changed' WHERE id = 1")
    pair.change("DELETE FROM plain WHERE id IN (2, 3, 4)")
    pair.change("UPDATE parted SET note = 'b'")
    assert pair.losses() == {"parted": (1, 1, 1, 1), "plain": (99, 100, 3, 4)}


def test_a_row_with_an_old_time_is_found_and_one_with_a_new_time_in_both_is_not(pair: Pair) -> None:
    pair.change("INSERT INTO events VALUES ('1999-01-01Z', 1, NULL)")
    assert pair.losses() == {"events": (49, 48, 1, 0)}


def test_rows_of_a_dropped_chunk_return(pair: Pair) -> None:
    pair.change("SELECT drop_chunks('events', older_than => '2026-01-02Z'::timestamptz)")
    assert pair.losses() == {"events": (25, 48, 0, 23)}


def test_equal_rows_without_a_key_are_counted_one_by_one(pair: Pair) -> None:
    pair.change('INSERT INTO "odd name"."odd table" VALUES (\'x\'), (NULL)')
    assert pair.losses() == {"odd name.odd table": (5, 3, 2, 0)}


def test_a_table_that_only_one_state_has_is_lost_or_returns(pair: Pair) -> None:
    pair.change("DROP TABLE plain")
    pair.change("CREATE TABLE later (id int)")
    pair.change("INSERT INTO later VALUES (1), (2)")
    assert pair.losses() == {"later": (2, 0, 2, 0), "plain": (0, 100, 0, 100)}


def test_a_live_database_without_timescaledb_is_compared_as_it_is(pair: Pair, postgres: PostgresServer) -> None:
    """One that was dropped and created again, or whose extension was dropped with its tables."""
    with postgres.fresh_database(extensions=False) as made_again:
        again = Pair(live=postgres.conninfo(dbname=made_again), restored=pair.restored)
        again.change("CREATE TABLE plain (id int, note text); INSERT INTO plain VALUES (1, 'note'), (0, 'new')")
        found = again.losses()
    assert (found["plain"], found["events"]) == ((2, 100, 1, 99), (0, 48, 0, 48))
    pair.change("DROP EXTENSION timescaledb CASCADE")
    assert pair.losses()["events"][1:] == (48, 0, 48)


def test_a_new_column_is_no_change_of_every_row(pair: Pair) -> None:
    pair.change("ALTER TABLE plain ADD COLUMN later int DEFAULT 7")
    pair.change("INSERT INTO plain VALUES (101, 'new')")
    assert pair.losses() == {"plain": (101, 100, 1, 0)}


def test_types_without_a_hash_of_their_own_are_compared_as_text(pair: Pair) -> None:
    for conninfo in (pair.live, pair.restored):
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute("CREATE TABLE shapes (id int, place point, raw json)")
            connection.execute("INSERT INTO shapes VALUES (1, '(1,2)', '{}'), (2, '(3,4)', NULL)")
    assert pair.losses() == {}
    pair.change("UPDATE shapes SET place = '(5,6)' WHERE id = 2")
    assert pair.losses() == {"shapes": (2, 2, 1, 1)}


def test_a_column_with_another_type_is_compared_as_text(pair: Pair) -> None:
    pair.change("ALTER TABLE plain ALTER id TYPE numeric; UPDATE plain SET note = 'x' WHERE id = 7")
    assert pair.losses() == {"plain": (100, 100, 1, 1)}


def _flip_bytes(file: Path) -> None:
    page = bytearray(file.read_bytes())
    page[4000:4100] = bytes(byte ^ 0xFF for byte in page[4000:4100])
    file.write_bytes(page)


def test_what_the_live_database_cannot_read_is_named_and_the_rest_is_compared(rootfs: Path) -> None:
    """A damaged page of a table, and the lost file of a chunk: the table's other chunk is compared."""
    with postgres_server(rootfs) as server, _pair(server) as pair:
        pair.change("UPDATE parted SET note = 'b'; INSERT INTO events VALUES ('2026-01-02T12:30Z', 7, NULL)")
        pair.change("DELETE FROM plain WHERE id = 1")
        with psycopg.connect(pair.live) as live:
            [(chunk,)] = live.execute("SELECT min(c::text) FROM show_chunks('events') AS c").fetchall()
            [(page, file)] = live.execute(
                "SELECT pg_relation_filepath('plain'), pg_relation_filepath(%s)", [chunk]
            ).fetchall()
        server.stop()
        _flip_bytes(server.directory / "data" / page)
        (server.directory / "data" / file).unlink()
        server.start()

        found = compare(pair.live, pair.restored)
        assert found.unreadable == (f"events ({chunk})", "plain")
        assert {each.table: (each.lost, each.returned) for each in found.tables} == {"events": (1, 0), "parted": (1, 1)}
        assert found.tables[0].now == found.tables[0].then + 1
        assert found.rows == 2

        with pytest.raises(RollbackRefusedError, match="the restored database is damaged, too: ") as refused:
            compare(pair.restored, pair.live)
        assert "`observatory backup verify --contents`" in str(refused.value)

        with (
            psycopg.connect(pair.live) as live,
            pytest.raises(StatementFailedError, match=r"XX001.*see docs/runbooks/StorageBackupDamaged\.md"),
            translate_errors("any statement"),
        ):
            live.execute("SELECT count(note) FROM plain")


COMPARISON = "import sys; from observatory.backups.rollback.loss import compare; compare(*sys.argv[1:])"
WAITING = """
    SELECT pid FROM pg_stat_activity
    WHERE application_name = 'observatory:compare' AND datname = %s AND wait_event_type = 'Lock'
"""


@contextlib.contextmanager
def _waiting_comparison(server: PostgresServer, pair: Pair) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A comparison in a process of its own, with the sessions in which it waits for the rows of both databases."""
    locked = "LOCK TABLE plain IN ACCESS EXCLUSIVE MODE"
    with psycopg.connect(pair.live) as first, psycopg.connect(pair.restored) as second, server.superuser() as observer:

        def waiting() -> list[int]:
            names = [conninfo_to_dict(each)["dbname"] for each in (pair.live, pair.restored)]
            return [pid for name in names for (pid,) in observer.execute(WAITING, [name]).fetchall()]

        first.execute(locked)
        second.execute(locked)
        command = [sys.executable, "-c", COMPARISON, pair.live, pair.restored]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                until(lambda: len(waiting()) == 2, "both sides to wait for the lock")
                yield process, waiting()
                until(lambda: not waiting(), "both statements to be cancelled")
            finally:
                process.kill()


def test_ctrl_c_ends_a_comparison_and_its_statements(postgres: PostgresServer, pair: Pair) -> None:
    with _waiting_comparison(postgres, pair) as (process, _sessions):
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]


@pytest.mark.parametrize("side", [0, 1])
def test_an_error_of_one_side_ends_the_other(postgres: PostgresServer, pair: Pair, side: int) -> None:
    with _waiting_comparison(postgres, pair) as (process, sessions), postgres.superuser() as administrator:
        administrator.execute("SELECT pg_terminate_backend(%s)", [sessions[side]])
        assert "UnreachableError: comparison: the connection broke" in process.communicate(timeout=60)[1]
