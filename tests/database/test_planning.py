"""The plan: pending statements, their locks, the backup, how to return; planning writes nothing."""

import tempfile
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from observatory.database import (
    BackupFailedError,
    Event,
    Installation,
    LintRefusedError,
    MigrationHistoryError,
    Throwaway,
    deploy,
    plan,
    status,
    write_script,
)
from observatory.database.advisory_locks import MIGRATION_LOCK, session_lock
from observatory.database.migrations.files import read_migrations
from observatory.database.migrations.statement_locks import StatementEffects
from observatory.database.migrations.statements import parse
from observatory.database.observed_script import ObservedScript
from observatory.platforms.rehearsal import rehearsal_server
from tests.database.conftest import SHIPPED, Deploy, WriteMigrations
from tests.database.test_migration_backup import Backups
from tests.support.postgres import PostgresServer
from tests.support.waiting import until

OWN = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"


@pytest.fixture
def throwaway(rootfs: Path) -> Throwaway:
    """Servers of the root filesystem; their data is kept in the user's cache."""
    return rehearsal_server(rootfs)


def test_a_rehearsal_observes_locks_and_rewrites_of_existing_relations(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations, throwaway: Throwaway
) -> None:
    directory = write_migrations(
        _001_a="CREATE TABLE a (ts timestamptz NOT NULL, x int);\nSELECT create_hypertable('a', by_range('ts'));\n"
        "CREATE TABLE b (id int PRIMARY KEY);"
    )
    run_deploy(migrations=directory)
    write_migrations(
        _002_b="-- lint-ignore removes-rows: it has none\n"
        "CREATE TABLE new (b int REFERENCES b);\nALTER TABLE new ADD x int;\nALTER TABLE b ADD y int;\n"
        "ALTER TABLE b ALTER y TYPE bigint;\nSELECT add_dimension('a', by_hash('x', 2));\nTRUNCATE b CASCADE;",
        _003_c="-- transaction: false\nANALYZE b;\nVACUUM a;\nALTER TABLE a ADD z int;",
    )

    planned = plan(conninfo, migrations=directory, throwaway=throwaway)

    assert (planned.rehearsal, planned.would_succeed) == ("passed", True)
    seen = [
        [(each.lock and (each.lock.mode, each.lock.relation), each.rewrites, each.observed) for each in file.statements]
        for file in planned.pending
    ]
    assert seen[0] == [
        (("SHARE ROW EXCLUSIVE", "b"), (), True),
        (None, (), True),
        (("ACCESS EXCLUSIVE", "b"), (), True),
        (("ACCESS EXCLUSIVE", "b"), ("b",), True),
        (("SHARE UPDATE EXCLUSIVE", "a"), (), True),
        (("ACCESS EXCLUSIVE", "b"), (), True),
    ]
    assert seen[1] == [
        (("SHARE UPDATE EXCLUSIVE", "b"), (), True),
        (
            ("SHARE UPDATE EXCLUSIVE", "a"),
            (),
            False,
        ),  # VACUUM runs without a transaction, so its locks come from its text
        (("ACCESS EXCLUSIVE", "a"), (), True),
    ]


def test_a_failed_rehearsal_names_the_place_and_fails_the_plan(
    conninfo: str, write_migrations: WriteMigrations, throwaway: Throwaway
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();", _002_b="SELECT 1;\nALTER TABLE missing ADD x int;")

    planned = plan(conninfo, migrations=directory, throwaway=throwaway)

    assert (planned.rehearsal, planned.would_succeed) == ("failed", False)
    assert planned.rehearsal_detail.startswith('002_b.sql:2:1: relation "missing" does not exist')


def test_the_rehearsal_has_the_roles_of_the_server(
    conninfo: str, postgres: PostgresServer, write_migrations: WriteMigrations, rootfs: Path
) -> None:
    with postgres.superuser() as admin:
        admin.execute("CREATE ROLE reporting")
    try:
        directory = write_migrations(_001_a="CREATE TABLE a ();\nGRANT SELECT ON a TO reporting;")
        assert plan(conninfo, migrations=directory, throwaway=rehearsal_server(rootfs)).rehearsal == "passed"
    finally:
        with postgres.superuser() as admin:
            admin.execute("DROP ROLE reporting")


def test_the_shipped_migrations_rehearse_on_a_throwaway_server_that_is_removed(
    conninfo: str, throwaway: Throwaway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with TemporaryDirectory() as directory:  # whose path is short enough for a socket
        monkeypatch.setattr(tempfile, "tempdir", directory)
        planned = plan(conninfo, migrations=SHIPPED, throwaway=throwaway)
        assert list(Path(directory).glob("observatory-throwaway-*")) == []

    assert (planned.rehearsal, len(planned.pending)) == ("passed", 8)
    transactions = [each for each in planned.pending if each.transactional]
    assert [each.name for each in planned.pending if each not in transactions] == ["007_text_limits_and_read_indexes"]
    assert all(statement.observed for each in transactions for statement in each.statements)


def test_a_plan_without_a_server_reports_that_it_was_not_rehearsed(
    conninfo: str, write_migrations: WriteMigrations, tmp_path: Path
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    missing = Installation(programs=str(tmp_path))

    alone = plan(conninfo, migrations=directory)
    tried = plan(conninfo, migrations=directory, throwaway=Throwaway(installation=missing))

    unchecked = ". A verification cannot check the objects of 001_a.sql"
    why = "no PostgreSQL for a rehearsal is installed on this machine"
    assert (alone.rehearsal, alone.rehearsal_detail) == ("not rehearsed", f"{why}{unchecked}")
    why = f"{tmp_path}/initdb cannot run: No such file or directory. Install PostgreSQL there"
    assert (tried.rehearsal, tried.rehearsal_detail) == ("not rehearsed", f"{why}{unchecked}")
    assert alone.would_succeed


def test_the_order_of_a_plan_is_that_of_the_names_and_not_of_the_catalogue(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    names, heirs = [f"t{number}" for number in range(9)], [f"heir{number}" for number in range(9)]
    tables = "".join(f"CREATE TABLE {name} ();\n" for name in reversed(names))
    tables += "".join(f"CREATE TABLE {name} () INHERITS (z);\n" for name in reversed(heirs))
    directory = write_migrations(_001_a=f"CREATE TABLE z (x int);\n{tables}")
    run_deploy(migrations=directory)
    changed = write_migrations(
        _002_b="-- lint-ignore changing-column-type: they are empty\nALTER TABLE z ALTER x TYPE bigint;\n"
        + "".join(f"ALTER TABLE {name} ADD c int;\n" for name in reversed(names))
    )
    observed = dict[tuple[str, int], StatementEffects]()

    planned = plan(conninfo, migrations=changed)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        ObservedScript(connection, conninfo, parse(read_migrations(changed)[-1]), observed).run()

    assert list(planned.sizes) == [*names, "z"]
    assert observed["002_b", 0].rewrites == (*heirs, "z")


def test_planning_writes_nothing_and_waits_for_no_lock(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    run_deploy(migrations=directory)
    write_migrations(_002_b="CREATE TABLE b ();\nINSERT INTO b DEFAULT VALUES;")
    with psycopg.connect(conninfo, autocommit=True) as watcher, session_lock(watcher, MIGRATION_LOCK, wait_s=0):
        before = written(watcher)

        planned = plan(conninfo, migrations=directory, backup=Backups())

        assert written(watcher) == before
        locks = watcher.execute(f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND {OWN}").fetchone()
        assert locks == (1,)
    assert [each.name for each in planned.pending] == ["002_b"]


def written(watcher: psycopg.Connection) -> list[tuple[object, ...]]:
    """Rows that this database's sessions have written, and which transaction last changed the ledger.

    A session that a client has closed is counted when its process ends, which may be later.
    """
    others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    until(lambda: watcher.execute(others).fetchone() is None, "the other sessions to end")
    watcher.execute("SELECT pg_stat_force_next_flush()")
    counters = "SELECT tup_inserted, tup_updated, tup_deleted FROM pg_stat_database WHERE datname = current_database()"
    ledger = "SELECT count(*), max(xmin::text::bigint) FROM observatory.schema_migrations"
    return watcher.execute(counters.encode()).fetchall() + watcher.execute(ledger.encode()).fetchall()


def test_a_plan_is_read_in_a_read_only_transaction(
    postgres: PostgresServer, run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    run_deploy(migrations=directory)
    with psycopg.connect(conninfo) as connection:
        # A function that writes; the plan's session calls it and must fail.
        connection.execute("CREATE SEQUENCE calls")
        connection.execute("CREATE FUNCTION note() RETURNS bool LANGUAGE sql AS $$ SELECT nextval('calls') > 0 $$")
        connection.execute(
            "ALTER TABLE observatory.schema_migrations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"
        )
        connection.execute("CREATE POLICY p ON observatory.schema_migrations USING (note())")
        connection.execute("CREATE ROLE planner LOGIN")
        connection.execute("GRANT USAGE ON SCHEMA observatory TO planner")
        connection.execute("GRANT SELECT ON observatory.schema_migrations TO planner")
        connection.execute("GRANT USAGE ON SEQUENCE calls TO planner")
    try:
        with pytest.raises(Exception, match="read-only transaction"):
            plan(conninfo.replace("user=postgres", "user=planner"), migrations=directory)
    finally:
        with postgres.superuser(conninfo.split("dbname=")[1]) as admin:
            admin.execute("DROP OWNED BY planner; DROP ROLE planner")


def test_the_plan_has_the_backup_and_how_to_return(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    empty = plan(conninfo, migrations=directory, backup=Backups())
    assert (empty.backup, empty.backup_detail) == (None, "the database is empty")

    run_deploy(migrations=directory)
    nothing = plan(conninfo, migrations=directory, backup=Backups())
    assert (nothing.backup, nothing.way_back) == (None, "nothing would change")

    write_migrations(_002_b="CREATE TABLE b ();")
    backups = Backups()
    planned = plan(conninfo, migrations=directory, backup=backups)
    assert planned.backup is not None
    assert planned.backup.kind == "full"
    assert "`observatory rollback --method database --to-time TIME`, from the full backup" in planned.way_back
    assert backups.calls == []


def test_the_plan_reports_a_backup_that_would_fail(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    class Unreachable(Backups):
        def latest_full(self) -> None:
            raise BackupFailedError("the repository does not answer")

    directory = write_migrations(_001_a="CREATE TABLE a ();")
    run_deploy(migrations=directory)
    write_migrations(_002_b="CREATE TABLE b ();")

    planned = plan(conninfo, migrations=directory, backup=Unreachable())

    assert (planned.would_succeed, planned.backup_detail) == (False, "the repository does not answer")


def test_the_plan_has_the_lint_findings_and_the_sizes_of_locked_tables(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(
        _001_a="CREATE TABLE a (ts timestamptz NOT NULL);\nSELECT create_hypertable('a', by_range('ts'));\n"
        "INSERT INTO a SELECT '2026-01-01'::timestamptz + n * interval '1 h' FROM generate_series(1, 500) n;\n"
        "ANALYZE a;"
    )
    run_deploy(migrations=directory)
    write_migrations(_002_b="-- transaction: false\nCREATE INDEX CONCURRENTLY IF NOT EXISTS a_ts ON a (ts);")

    planned = plan(conninfo, migrations=directory, only="002_b.sql")

    [file] = planned.pending
    assert [(found.file, found.line, found.severity) for found in file.findings] == [("002_b.sql", 2, "error")]
    assert planned.sizes["a"].rows == 500
    document = planned.as_json()
    assert document["pending"][0]["statements"][0]["lock"] == {"mode": "SHARE UPDATE EXCLUSIVE", "relation": "a"}
    assert document["would_succeed"] is False
    [refusal] = document["refusals"]
    assert refusal.startswith("002_b.sql:2:1: error: TimescaleDB rejects CONCURRENTLY on the hypertable a")
    with pytest.raises(LintRefusedError) as refused:
        run_deploy(migrations=directory)
    assert str(refused.value) == refusal
    with pytest.raises(LintRefusedError, match="TimescaleDB rejects CONCURRENTLY"):
        write_script(conninfo, migrations=directory)
    assert status(conninfo).version == 1


def test_an_error_with_a_reason_does_not_stop_and_a_warning_is_reported(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    hypertable = "CREATE TABLE a (ts timestamptz NOT NULL);\nSELECT create_hypertable('a', by_range('ts'));"
    run_deploy(migrations=write_migrations(_001_a=hypertable))
    directory = write_migrations(
        _002_b="-- lint-ignore volatile-default-on-hypertable: the table is empty\n-- lint-ignore x: y\n"
        "ALTER TABLE a ADD COLUMN id uuid DEFAULT gen_random_uuid();\n"
    )
    events: list[Event] = []

    assert plan(conninfo, migrations=directory).refusals == ()
    assert "-- 002_b.sql:2:1: warning: the header ignores x" in write_script(conninfo, migrations=directory).sql
    assert run_deploy(migrations=directory, on_event=events.append).applied == ("002_b",)

    [warning] = [event for event in events if event.kind == "finding"]
    assert warning.migration == "002_b"
    assert warning.detail.startswith("002_b.sql:2:1: warning: the header ignores x")


def test_an_interrupted_file_is_planned_from_the_first_statement_not_done(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations, throwaway: Throwaway
) -> None:
    directory = write_migrations(_001_a="-- transaction: false\nCREATE TABLE a ();\nSELECT missing;")
    with pytest.raises(Exception, match="missing"):
        run_deploy(migrations=directory)
    write_migrations(_001_a="-- transaction: false\nCREATE TABLE a ();\nVACUUM a;")

    [file] = plan(conninfo, migrations=directory, throwaway=throwaway).pending

    assert (file.statements_done, [statement.sql for statement in file.statements]) == (1, ["VACUUM a"])


def test_the_plan_refuses_what_deploy_refuses(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="SELECT 1;")
    run_deploy(migrations=directory)
    write_migrations(_001_a="SELECT 2;")

    with pytest.raises(MigrationHistoryError, match=r"001_a\.sql:1:8: was edited"):
        plan(conninfo, migrations=directory)
    with pytest.raises(MigrationHistoryError):
        deploy(conninfo, migrations=directory, actor="t", deployment_id="t")
