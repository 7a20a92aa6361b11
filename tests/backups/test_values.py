"""Values that are recorded of a database, and what a comparison with them finds."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from types import ModuleType

import psycopg
import pytest

from observatory.backups import comparison, recording
from observatory.backups import values as values_module
from observatory.backups.comparison import compare_values
from observatory.backups.exact_snapshot import ExactSnapshot, Table
from observatory.backups.recording import budget
from observatory.backups.values import ValueStore
from observatory.runtime import Sandbox
from tests.support.postgres import PostgresServer
from tests.support.waiting import until

record_values = partial(recording.record_values, patience_s=120)  # a busy machine locks no table in 100 ms
SCHEMA = """
    CREATE TABLE events (ts timestamptz NOT NULL, text text);
    SELECT create_hypertable('events', by_range('ts', INTERVAL '1 day'));
    INSERT INTO events SELECT '2026-01-01'::timestamptz + n * INTERVAL '1 hour', repeat(md5(n::text), 100)
    FROM generate_series(0, 95) n;
    CREATE TABLE "Odd.name" (id int, "observatory_row" text, kept jsonb, gone int);
    ALTER TABLE "Odd.name" DROP COLUMN gone;
    INSERT INTO "Odd.name" SELECT n, 'text', '{"a": 1.0}' FROM generate_series(1, 100) n;
    CREATE TABLE empty ();
"""


@pytest.fixture
def database(postgres: PostgresServer, fresh_database: str) -> str:
    with postgres.superuser(fresh_database) as connection:
        connection.execute(SCHEMA)
    return postgres.conninfo(dbname=fresh_database)


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as opened:
        yield opened


def chunks(connection: psycopg.Connection) -> list[str]:
    rows = connection.execute(
        "SELECT format('%I.%I', schema_name, table_name) FROM _timescaledb_catalog.chunk ORDER BY id"
    )
    return [name for (name,) in rows]


def test_every_row_of_a_small_database_is_counted_and_compared(database: str, connection: psycopg.Connection) -> None:
    connection.execute("SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'")

    values = record_values(database, budget_s=60)

    assert values.rows == 96 + 100
    assert set(values.tables) == {"public.empty", 'public."Odd.name"', *chunks(connection)}
    assert values.compared_bytes == values.bytes
    found = compare_values(database, values)
    assert (found.pieces, found.rows, found.differences) == (len(values.pieces), 196, ())


@pytest.mark.parametrize(
    ("statement", "difference"),
    [
        ("DELETE FROM events WHERE text = (SELECT max(text) FROM events)", "23 rows, recorded were 24"),
        ("INSERT INTO events VALUES ('2026-01-01', 'more')", "25 rows, recorded were 24"),
        ("UPDATE events SET text = text || ' ' WHERE ts = '2026-01-02 01:00'", "the 24 rows have other values"),
        ('UPDATE "Odd.name" SET kept = \'{"a": 1.00}\' WHERE id = 7', 'public."Odd.name", blocks 0 to the end'),
        ("INSERT INTO empty DEFAULT VALUES", "public.empty, blocks 0 to the end: 1 rows, recorded were 0"),
        ("DROP TABLE empty", "public.empty is missing"),
        ("SELECT drop_chunks('events', older_than => '2026-01-02'::timestamptz)", "is missing"),
        ("INSERT INTO events VALUES ('2027-01-01', 'a new chunk')", "was created after the values were recorded"),
    ],
    ids=["lost", "added", "changed", "same value, other text", "was empty", "no table", "no chunk", "new chunk"],
)
def test_a_difference_in_one_row_is_found(
    database: str, connection: psycopg.Connection, statement: str, difference: str
) -> None:
    values = record_values(database, budget_s=60)
    connection.execute("SET timezone = 'UTC'")

    connection.execute(statement.encode())

    found = compare_values(database, values)
    assert len(found.differences) == 1
    assert difference in found.describe()


def test_a_row_that_is_there_twice_is_found(database: str, connection: psycopg.Connection) -> None:
    connection.execute("INSERT INTO empty DEFAULT VALUES; INSERT INTO empty DEFAULT VALUES")
    values = record_values(database, budget_s=60)
    connection.execute("INSERT INTO empty DEFAULT VALUES; INSERT INTO empty DEFAULT VALUES")
    assert "4 rows, recorded were 2" in compare_values(database, values).describe()


SLEEP = "SELECT pg_sleep(600)"
SLEEPERS = "SELECT FROM pg_stat_activity WHERE query = %s AND state = 'active'"


@pytest.mark.parametrize("module", [recording, comparison], ids=["record", "compare"])
def test_an_error_of_one_worker_cancels_the_count_of_the_other(
    database: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, module: ModuleType
) -> None:
    values = record_values(database, budget_s=60)
    calls, cancelled = count(), list[str]()

    def count_piece(session: psycopg.Connection, *_piece: object) -> tuple[int, int]:
        if next(calls):
            until(lambda: connection.execute(SLEEPERS, [SLEEP]).fetchone() is not None, "the other to count")
            raise ValueError("this one fails")
        try:
            session.execute(SLEEP)
        except psycopg.errors.QueryCanceled as error:
            cancelled.append(str(error))
            raise
        return 0, 0

    monkeypatch.setattr(module, "count_piece", count_piece)
    with pytest.raises(ValueError, match="this one fails"):
        record_values(database, budget_s=60) if module is recording else compare_values(database, values)
    assert cancelled == ["canceling statement due to user request"]


def test_a_restore_point_follows_the_place_of_the_values(database: str, connection: psycopg.Connection) -> None:
    values = record_values(database, budget_s=60)
    assert connection.execute("SELECT pg_current_wal_insert_lsn() > %s::pg_lsn", [values.lsn]).fetchone() == (True,)


def test_without_time_small_tables_are_counted_and_later_every_piece(
    database: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "PIECE_BLOCKS", 1)
    connection.execute("INSERT INTO events SELECT '2026-01-01', 'text' FROM generate_series(1, 1000)")
    without = record_values(database, budget_s=-1)
    assert {piece.name for piece in without.pieces} == {"public.empty", 'public."Odd.name"'}
    assert without.bytes > without.compared_bytes

    everything = record_values(database, budget_s=60)
    assert len(everything.pieces) > len(everything.tables)
    assert compare_values(database, everything).differences == ()


@pytest.mark.parametrize("statement", ["TRUNCATE {}", "DROP TABLE {}", "VACUUM FULL {}"])
def test_a_table_that_is_rewritten_while_rows_are_counted_has_no_values(
    database: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    [first, *_] = chunks(connection)
    parts_of = recording._parts

    def changed_afterwards(conninfo: str, snapshot: ExactSnapshot) -> list[recording._Part]:
        found = parts_of(conninfo, snapshot)
        connection.execute(statement.format(first).encode())
        return found

    monkeypatch.setattr(recording, "_parts", changed_afterwards)

    values = record_values(database, budget_s=60)

    assert first in values.tables
    assert first not in {piece.name for piece in values.pieces}
    assert values.rows == 196 - 24


def test_pieces_of_the_newest_chunks_and_the_longest_uncounted_ones_are_first() -> None:
    def part(table: int, first: int) -> recording._Part:
        chunk = Table(oid=table, schema="s", name=f"c{table}", storage=1, kind="chunk", hypertable=1, newest=table)
        return recording._Part(table=chunk, first=first, end=None, bytes=1)

    parts = [part(table, first) for table in (1, 2, 3) for first in (0, 1)]
    now = datetime(2026, 11, 29, tzinfo=UTC)
    counted = {("s.c3", 0): now, ("s.c1", 0): now - timedelta(days=1), ("s.c1", 1): now, ("s.c2", 0): now}
    assert [each.key for each in recording._ordered(parts, counted)] == [
        ("s.c3", 1),
        ("s.c2", 1),
        ("s.c3", 0),
        ("s.c1", 0),
        ("s.c1", 1),
        ("s.c2", 0),
    ]


@pytest.mark.parametrize(("backup_s", "seconds"), [(1, 0.3), (10, 1.0), (3600, 1.5)])
def test_values_take_a_tenth_of_the_backup_and_never_two_seconds(backup_s: float, seconds: float) -> None:
    assert budget(backup_s) == pytest.approx(seconds)


def test_the_newest_records_are_kept_and_damaged_ones_are_ignored(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values_module, "KEPT", 3)
    store = ValueStore(Sandbox(tmp_path / "home", tmp_path))
    values = record_values(database, budget_s=60)
    for name in "abcde":
        store.add(values.model_copy(update={"name": name}))
    assert [each.name for each in store.all()] == ["c", "d", "e"]
    (tmp_path / "home/data/backup-values/d.json").write_text("{")
    assert [each.name for each in store.all()] == ["c", "e"]
    assert store.last_compared()["public.empty", 0] == values.recorded
