"""Interrupted statements outside a transaction: the next run finishes or undoes them."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from observatory.database import (
    MigrationHistoryError,
    MigrationLockLostError,
    StatementFailedError,
    status,
)
from observatory.database.migrations.events import Event
from observatory.database.migrations.ledger import statements_digest
from tests.database.conftest import Deploy, WriteMigrations
from tests.support.postgres import PostgresServer

HEADER = "-- transaction: false\n"
AGGREGATE = (
    "CREATE MATERIALIZED VIEW m WITH (timescaledb.continuous) AS "
    "SELECT time_bucket('1 day', ts) AS bucket, count(*) FROM a GROUP BY 1"
)
OWN = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
ADVISORY = f"locktype = 'advisory' AND {OWN}"
BUILD = "CREATE INDEX CONCURRENTLY {}a_x ON a (x);"


def query(conninfo: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        return connection.execute(sql.encode()).fetchall()


def query_nothing(conninfo: str, sql: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(sql.encode())


def begun(conninfo: str, file: Path) -> None:
    """Leave the ledger as a run does that is killed inside or right after the second statement of a file."""
    statements = [text.strip() for text in file.read_text().removeprefix(HEADER).split(";") if text.strip()]
    first, second = (hashlib.sha256(statement.encode()).hexdigest() for statement in statements[:2])
    with psycopg.connect(conninfo) as connection:
        connection.execute(
            "UPDATE observatory.schema_migrations SET statements_done = 1, statements_digest = %s, "
            "statement_running = %s WHERE version = %s",
            [statements_digest([first]), second, int(file.name[:3])],
        )


@pytest.mark.parametrize("clause", ["", "IF NOT EXISTS "])
@pytest.mark.parametrize("left", ["nothing", "an invalid index", "the whole index"])
def test_an_index_whose_build_was_interrupted_ends_valid(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations, clause: str, left: str
) -> None:
    directory = write_migrations(_001_a=f"{HEADER}CREATE TABLE a (x int);\n{BUILD.format(clause)}\n")
    run_deploy(migrations=directory)
    begun(conninfo, directory / "001_a.sql")
    with psycopg.connect(conninfo, autocommit=True) as connection:
        if left == "nothing":
            connection.execute("DROP INDEX a_x")
        if left == "an invalid index":
            connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'a_x'::regclass")

    assert status(conninfo).version == 0
    assert run_deploy(migrations=directory).applied == ("001_a",)
    assert query(conninfo, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'a_x'::regclass") == [(True,)]
    assert query(conninfo, "SELECT statement_running FROM observatory.schema_migrations") == [(None,)]


def test_a_failed_index_build_does_not_block_the_next_attempt(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    build = "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS a_x ON a (x);"
    directory = write_migrations(_001_a=f"{HEADER}CREATE TABLE a AS SELECT 1 AS x FROM generate_series(1, 2);\n{build}")
    with pytest.raises(StatementFailedError, match=r"001_a\.sql:3:1: could not create unique index"):
        run_deploy(migrations=directory)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("DELETE FROM a")

    assert run_deploy(migrations=directory).applied == ("001_a",)
    assert query(conninfo, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'a_x'::regclass") == [(True,)]


def test_an_existing_index_of_the_same_name_does_not_count_as_the_failed_one(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a (x int, y int); CREATE INDEX a_x ON a (y);")
    run_deploy(migrations=directory)
    write_migrations(_002_b=f"{HEADER}SELECT 'may remove a_x';\n{BUILD.format('')}")

    for _ in range(2):
        with pytest.raises(StatementFailedError, match=r'002_b\.sql:3:1: relation "a_x" already exists'):
            run_deploy(migrations=directory)


@pytest.mark.parametrize("end", ["the writer ends", "the build is cancelled"])
def test_an_index_by_chunk_waits_for_a_writer_and_does_not_build_the_other_chunks_again(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations, end: str
) -> None:
    """It waits longer than a lock timeout; where it fails at the last chunk, the indexes of the others are dropped."""
    directory = write_migrations(
        _001_a="CREATE TABLE a (ts timestamptz NOT NULL);\nSELECT create_hypertable('a', by_range('ts'));\n"
        "INSERT INTO a VALUES ('2026-01-01'), ('2026-02-01');"
    )
    run_deploy(migrations=directory)
    write_migrations(_002_b=f"{HEADER}CREATE INDEX a_x ON a (ts) WITH (timescaledb.transaction_per_chunk);")
    [last] = query(conninfo, "SELECT max(chunk::text) FROM show_chunks('a') AS chunk")[0]
    waits = f"SELECT pid FROM pg_locks WHERE NOT granted AND {OWN} AND waitstart < clock_timestamp() - interval '1 s'"
    indexes = "SELECT indisvalid FROM pg_index WHERE indexrelid::regclass::text ~ 'a_x'"

    with ThreadPoolExecutor(1) as pool, psycopg.connect(conninfo) as writer:
        writer.execute(f"LOCK TABLE {last} IN ROW EXCLUSIVE MODE".encode())
        deployment = pool.submit(run_deploy, migrations=directory)
        while not (waiting := query(conninfo, waits)):
            assert not deployment.done()
        if end == "the writer ends":
            writer.rollback()
            assert deployment.result().applied == ("002_b",)
        else:
            query(conninfo, f"SELECT pg_cancel_backend({waiting[0][0]})")
            with pytest.raises(StatementFailedError, match=r"002_b\.sql:2:1: canceling statement"):
                deployment.result()
            writer.rollback()
            assert query(conninfo, indexes) == []
            assert run_deploy(migrations=directory).applied == ("002_b",)

    assert query(conninfo, indexes) == [(True,), (True,), (True,)]


def test_a_drop_that_ran_before_the_interruption_is_not_an_error(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    drop = "DROP INDEX CONCURRENTLY a_pkey_copy;"
    directory = write_migrations(
        _001_a="CREATE TABLE a (x int); CREATE INDEX a_pkey_copy ON a (x);", _002_b=f"{HEADER}SELECT 1;\n{drop}"
    )
    run_deploy(migrations=directory, target=1)
    run_deploy(migrations=directory)
    begun(conninfo, directory / "002_b.sql")

    assert run_deploy(migrations=directory).applied == ("002_b",)


def test_a_statement_that_may_run_in_a_transaction_is_recorded_in_it(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    def transactions(event: Event) -> None:
        if event.kind == "statement":
            seen.append(query(conninfo, "SELECT to_regclass('b'), to_regclass('c')")[0])

    seen: list[tuple[object, ...]] = []
    directory = write_migrations(_001_a=f"{HEADER}CREATE TABLE b ();\nCREATE TABLE c ();")

    run_deploy(migrations=directory, on_event=transactions)

    assert seen == [(None, None), ("b", None)]


def test_a_resumed_file_sets_its_session_parameters_again(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    done = f"{HEADER}SET search_path = other, public;\nCREATE SCHEMA other;\n"
    directory = write_migrations(_001_a=f"{done}SELECT missing;")
    with pytest.raises(StatementFailedError):
        run_deploy(migrations=directory)

    write_migrations(_001_a=f"{done}CREATE TABLE a ();")
    run_deploy(migrations=directory)

    assert query(conninfo, "SELECT schemaname FROM pg_tables WHERE tablename = 'a'") == [("other",)]


def test_an_index_built_concurrently_waits_for_old_transactions(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a (x int);")
    run_deploy(migrations=directory)
    write_migrations(_002_b=HEADER + BUILD.format(""))
    events: list[Event] = []
    blocked = threading.Event()

    def note(event: Event) -> None:
        events.append(event)
        if event.kind == "blocked":
            blocked.set()

    with psycopg.connect(conninfo) as old, ThreadPoolExecutor(1) as pool:
        old.execute("INSERT INTO a VALUES (1)")
        holder = f"pid {old.info.backend_pid}"
        waiting = pool.submit(run_deploy, migrations=directory, on_event=note)
        assert blocked.wait(60)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=1)  # longer than the lock timeout
        old.commit()
        assert waiting.result().applied == ("002_b",)
    named = [holder in event.detail for event in events if event.kind == "blocked"]
    assert named[0]
    assert named.count(True) == 1  # the build may wait for others after it, as for autovacuum


def test_an_extension_is_updated_by_the_first_statement_of_a_session(
    postgres: PostgresServer, run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("DROP EXTENSION pg_stat_statements; CREATE EXTENSION pg_stat_statements VERSION '1.9'")
    update = "ALTER EXTENSION pg_stat_statements UPDATE TO '1.10';"
    earlier = len(postgres.log_file.read_text().splitlines())  # of which a session may have had the same process id

    done = run_deploy(migrations=write_migrations(_001_a=f"{HEADER}SELECT 1;\n{update}", _002_b="SELECT 2;"))

    assert done.applied == ("001_a", "002_b")
    assert query(conninfo, "SELECT extversion FROM pg_extension WHERE extname = 'pg_stat_statements'") == [("1.10",)]
    lines = postgres.log_file.read_text().splitlines()[earlier:]
    [line] = [line for line in lines if update.rstrip(";") in line]
    pid = line.split("[", 1)[1].split("]", 1)[0]
    logged = [line for line in lines if f"[{pid}] " in line]
    assert logged[0] == line


@pytest.mark.community
def test_an_aggregate_is_filled_after_an_interruption(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(
        _001_a="CREATE TABLE a (ts timestamptz NOT NULL);\nSELECT create_hypertable('a', by_range('ts'));\n"
        "INSERT INTO a VALUES ('2026-01-01');",
        **{"002_b.community": f"{HEADER}SELECT 1;\n{AGGREGATE};", "002_b.apache": "SELECT 1;"},
    )
    run_deploy(migrations=directory)
    begun(conninfo, directory / "002_b.community.sql")
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("DROP MATERIALIZED VIEW m")
        connection.execute(f"{AGGREGATE} WITH NO DATA".encode())  # created but not filled
    assert query(conninfo, "SELECT count(*) FROM m") == [(0,)]

    assert run_deploy(migrations=directory).applied == ("002_b",)
    assert query(conninfo, "SELECT count(*) FROM m") == [(1,)]


def test_a_file_whose_remaining_statements_were_removed_is_completed(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a=f"{HEADER}CREATE TABLE a ();\nSELECT missing;")
    with pytest.raises(StatementFailedError):
        run_deploy(migrations=directory)

    write_migrations(_001_a=f"{HEADER}CREATE TABLE a ();", _002_b="CREATE TABLE b ();")
    assert run_deploy(migrations=directory).applied == ("001_a", "002_b")

    assert [(entry.statements_done, entry.statements_total) for entry in status(conninfo).applied] == [(1, 1), (1, 1)]
    assert run_deploy(migrations=directory).applied == ()


def test_a_file_that_an_earlier_release_left_behind_is_completed(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    """Earlier releases applied later files after it, and refused every deployment from then on."""
    directory = write_migrations(_001_a=f"{HEADER}CREATE TABLE a ();", _002_b="CREATE TABLE b ();")
    run_deploy(migrations=directory)
    query_nothing(conninfo, "UPDATE observatory.schema_migrations SET statements_total = 2 WHERE version = 1")

    assert run_deploy(migrations=directory).applied == ("001_a",)
    assert run_deploy(migrations=directory).applied == ()


def test_an_older_ledger_with_a_hash_for_each_statement_resumes(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    statements = ["CREATE TABLE a ()", "CREATE TABLE b ()"]
    hashes = [hashlib.sha256(statement.encode()).hexdigest() for statement in statements]
    directory = write_migrations(_001_a=f"{HEADER}{';'.join(statements)};SELECT missing;")
    with pytest.raises(StatementFailedError):
        run_deploy(migrations=directory)
    query_nothing(
        conninfo,
        "ALTER TABLE observatory.schema_migrations DROP statements_digest, DROP note, ADD statement_hashes text[]; "
        f"UPDATE observatory.schema_migrations SET statement_hashes = ARRAY{hashes}",
    )

    write_migrations(_001_a=f"{HEADER}CREATE TABLE other ();CREATE TABLE b ();CREATE TABLE c ();")
    with pytest.raises(MigrationHistoryError, match=r"001_a\.sql:2:1: statement 1 was changed after it ran"):
        run_deploy(migrations=directory)
    write_migrations(_001_a=f"{HEADER}{';'.join(statements)};CREATE TABLE c ();")
    assert run_deploy(migrations=directory).applied == ("001_a",)
    assert query(conninfo, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(3,)]
    assert query(conninfo, "SELECT statements_digest FROM observatory.schema_migrations") == [
        (statements_digest([*hashes, hashlib.sha256(b"CREATE TABLE c ()").hexdigest()]),)
    ]


def test_a_file_whose_first_statement_failed_outside_a_transaction_leaves_no_row(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a AS SELECT 1 AS x FROM generate_series(1, 2);")
    run_deploy(migrations=directory)
    write_migrations(_002_b=f"{HEADER}CREATE UNIQUE INDEX CONCURRENTLY a_x ON a (x);")
    with pytest.raises(StatementFailedError, match=r"002_b\.sql:2:1: could not create unique index"):
        run_deploy(migrations=directory)
    assert [entry.name for entry in status(conninfo).applied] == ["001_a"]
    assert query(conninfo, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == [(0,)]

    (directory / "002_b.sql").unlink()
    assert run_deploy(migrations=write_migrations(_002_other="CREATE INDEX a_x ON a (x);")).applied == ("002_other",)


def test_an_index_whose_statement_left_the_file_while_it_was_built_is_dropped(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a=f"{HEADER}CREATE TABLE a (x int);\n{BUILD.format('')}\n")
    run_deploy(migrations=directory)
    begun(conninfo, directory / "001_a.sql")
    query_nothing(conninfo, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'a_x'::regclass")

    write_migrations(_001_a=f"{HEADER}CREATE TABLE a (x int);\nCREATE TABLE b ();")
    assert run_deploy(migrations=directory).applied == ("001_a",)
    assert query(conninfo, "SELECT to_regclass('a_x'), statement_running FROM observatory.schema_migrations") == [
        (None, None)
    ]


def test_the_ledger_of_a_long_file_stays_small(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    run_deploy(migrations=write_migrations(_001_a=HEADER + "".join(f"SELECT {number};\n" for number in range(600))))

    [[size]] = query(conninfo, "SELECT pg_total_relation_size('observatory.schema_migrations')")
    assert isinstance(size, int)
    assert size < 1_000_000  # one hash for each statement in each record: 14 MB


@pytest.mark.parametrize("header", ["", HEADER])
@pytest.mark.parametrize(
    "release", ["SELECT pg_advisory_unlock_all()", "DO $$BEGIN PERFORM pg_advisory_unlock_all(); END$$"]
)
def test_a_file_that_releases_the_migration_lock_stops_the_deployment(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations, header: str, release: str
) -> None:
    directory = write_migrations(
        _001_a="SELECT 1;", _002_b=f"{header}{release};\nCREATE TABLE b ();", _003_c="SELECT 1;"
    )

    with pytest.raises(MigrationLockLostError, match=r"002_b\.sql:.* the migration lock was lost while the file ran"):
        run_deploy(migrations=directory, linted=False)

    assert [entry.name for entry in status(conninfo).applied] == ["001_a"]
    assert query(conninfo, "SELECT to_regclass('b')") == [(None,)]


def test_a_lost_session_of_the_lock_stops_a_deployment_on_a_second_session(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    """An update of the extension runs in its own session, and so does what follows it."""

    def end_the_first_session(event: Event) -> None:
        if event.kind == "applying" and event.migration == "002_b":
            query(conninfo, f"SELECT pg_terminate_backend(pid) FROM pg_locks WHERE {ADVISORY}")
            while query(conninfo, f"SELECT 1 FROM pg_locks WHERE {ADVISORY}"):
                pass

    directory = write_migrations(
        _001_a=f"{HEADER}ALTER EXTENSION timescaledb UPDATE;", _002_b="CREATE TABLE b ();", _003_c="SELECT 1;"
    )
    with pytest.raises(MigrationLockLostError, match=r"002_b\.sql:1:1: the migration lock was lost"):
        run_deploy(migrations=directory, on_event=end_the_first_session)

    assert [entry.name for entry in status(conninfo).applied] == ["001_a"]
