"""Deployments: applied once, refused on contradictions, rolled back on failure."""

from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from observatory.database import (
    MigrationFileError,
    MigrationHistoryError,
    StatementFailedError,
    UnreachableError,
    UnsuitableServerError,
    deploy,
    plan,
    status,
)
from observatory.database.migrations.events import Event
from tests.database.conftest import SHIPPED, Deploy, WriteMigrations
from tests.support.postgres import SMALL_DISK, PostgresServer, postgres_server


def query(conninfo: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        return connection.execute(sql.encode()).fetchall()


def tables(conninfo: str) -> set[object]:
    return {row[0] for row in query(conninfo, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


def test_the_shipped_migrations_apply_once(run_deploy: Deploy, conninfo: str) -> None:
    first = run_deploy(migrations=SHIPPED, target=3)
    second = run_deploy(migrations=SHIPPED, target=3)

    assert first.applied == ("001_initial_schema", "002_add_hypertables", "003_create_indexes")
    assert (first.version, first.edition) == (3, "apache")
    assert (second.applied, second.version) == ((), 3)
    entries = status(conninfo).applied
    assert [(entry.version, entry.complete, entry.applied_by) for entry in entries] == [
        (1, True, "tester"),
        (2, True, "tester"),
        (3, True, "tester"),
    ]


def test_a_deployment_with_nothing_pending_writes_nothing_and_takes_no_lock(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    run_deploy(migrations=directory)

    with psycopg.connect(conninfo, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s, 1)", [0x6F627376])

        assert run_deploy(migrations=directory).applied == ()


def test_a_target_limits_the_deployment_and_can_be_raised(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();", _002_b="CREATE TABLE b ();")

    assert run_deploy(migrations=directory, target=1).version == 1
    assert tables(conninfo) == {"a"}
    assert status(conninfo, migrations=directory).pending == ("002_b",)
    assert run_deploy(migrations=directory).applied == ("002_b",)


@pytest.mark.parametrize(("target", "message"), [(1, "do not run backwards"), (3, "target 3 has no file")])
def test_an_impossible_target_is_refused(
    run_deploy: Deploy, write_migrations: WriteMigrations, target: int, message: str
) -> None:
    directory = write_migrations(_001_a="SELECT 1;", _002_b="SELECT 2;")
    run_deploy(migrations=directory)

    with pytest.raises(MigrationHistoryError, match=message):
        run_deploy(migrations=directory, target=target)


def test_an_edited_applied_file_is_refused_at_its_first_difference(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="-- first\nCREATE TABLE a ();\n")
    run_deploy(migrations=directory)
    write_migrations(_001_a="-- first\nCREATE TABLE changed ();\n", _002_b="CREATE TABLE b ();")

    with pytest.raises(MigrationHistoryError, match=r"001_a\.sql:2:14: was edited after it was applied"):
        run_deploy(migrations=directory)
    assert tables(conninfo) == {"a"}


def test_a_missing_or_renamed_applied_file_is_refused(run_deploy: Deploy, write_migrations: WriteMigrations) -> None:
    directory = write_migrations(_001_a="SELECT 1;", _002_b="SELECT 2;")
    run_deploy(migrations=directory)

    renamed = (directory / "002_b.sql").rename(directory / "002_c.sql")
    with pytest.raises(MigrationHistoryError, match=r"002_c\.sql:1:1: was renamed after it was applied as 002_b"):
        run_deploy(migrations=directory)
    renamed.unlink()
    with pytest.raises(
        MigrationHistoryError, match=r"002_b\.sql: was applied to this database .*, but the file is missing"
    ):
        run_deploy(migrations=directory)


def test_a_file_that_would_run_out_of_order_is_refused(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="SELECT 1;", _002_b="CREATE TABLE b ();", _003_c="SELECT 3;")
    run_deploy(migrations=directory)
    with psycopg.connect(conninfo) as connection:
        connection.execute("DELETE FROM observatory.schema_migrations WHERE version = 2")

    with pytest.raises(MigrationHistoryError, match=r"002_b\.sql:1:1: is not applied, but the later number 003 is"):
        run_deploy(migrations=directory)


def test_an_unusable_file_is_refused_before_any_file_runs(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();", _002_b="CREATE TABEL b ();")

    with pytest.raises(MigrationFileError, match=r"002_b\.sql:1:8: syntax error"):
        run_deploy(migrations=directory)
    assert tables(conninfo) == set()
    assert query(conninfo, "SELECT to_regnamespace('observatory')") == [(None,)]


def test_a_failed_statement_is_located_and_its_file_is_rolled_back(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(
        _001_a="CREATE TABLE a ();", _002_b="CREATE TABLE b ();\n-- é\nINSERT INTO b SELECT missing\nFROM a;"
    )

    with pytest.raises(StatementFailedError, match=r'002_b\.sql:3:22: column "missing" does not exist'):
        run_deploy(migrations=directory)
    assert tables(conninfo) == {"a"}
    assert status(conninfo).version == 1

    write_migrations(_002_b="CREATE TABLE b ();")
    assert run_deploy(migrations=directory).applied == ("002_b",)


def test_an_error_without_a_position_is_located_at_its_statement(
    run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();\n\n  CREATE TABLE a ();")

    with pytest.raises(StatementFailedError, match=r'001_a\.sql:3:3: relation "a" already exists \(SQLSTATE 42P07\)'):
        run_deploy(migrations=directory)


def test_a_constraint_that_fails_at_commit_rolls_back_file_and_ledger_row(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    deferred = "CREATE TABLE a (b int UNIQUE DEFERRABLE INITIALLY DEFERRED);\nINSERT INTO a VALUES (1), (1);"

    with pytest.raises(StatementFailedError, match=r"001_a\.sql:1:1: duplicate key"):
        run_deploy(migrations=write_migrations(_001_a=deferred))
    assert tables(conninfo) == set()
    assert status(conninfo).applied == ()


def test_session_parameters_of_a_file_do_not_affect_the_next_one(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="SELECT set_config('search_path', '', false);", _002_b="CREATE TABLE b ();")

    assert run_deploy(migrations=directory).version == 2
    assert query(conninfo, "SELECT tableowner, schemaname FROM pg_tables WHERE tablename = 'b'") == [
        ("postgres", "public")
    ]


def test_a_file_without_a_transaction_resumes_at_the_first_unfinished_statement(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    header, done = "-- transaction: false\n", "CREATE TABLE a (x int);\nCREATE INDEX CONCURRENTLY a_x ON a (x);\n"
    directory = write_migrations(_001_a=header + done + "SELECT missing;\nVACUUM a;")

    with pytest.raises(StatementFailedError, match=r"001_a\.sql:4:8: column"):
        run_deploy(migrations=directory)
    [interrupted] = status(conninfo).applied
    assert (interrupted.statements_done, interrupted.statements_total, interrupted.complete) == (2, 4, False)
    assert status(conninfo, migrations=directory).pending == ("001_a",)

    write_migrations(_001_a=header + done + "VACUUM a;")
    assert run_deploy(migrations=directory).applied == ("001_a",)
    assert run_deploy(migrations=directory).applied == ()


def test_a_finished_statement_may_not_change_before_its_file_resumes(
    run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="-- transaction: false\nCREATE TABLE a ();\nSELECT missing;")
    with pytest.raises(StatementFailedError):
        run_deploy(migrations=directory)

    write_migrations(_001_a="-- transaction: false\nCREATE TABLE other ();\nSELECT 1;")
    with pytest.raises(MigrationHistoryError, match=r"001_a\.sql:2:1: statement 1 was changed after it ran"):
        run_deploy(migrations=directory)
    write_migrations(_001_a="CREATE TABLE other ();")
    with pytest.raises(MigrationHistoryError, match=r"Restore that header, or remove the row: .*--repair forget 001_a"):
        run_deploy(migrations=directory)


def test_a_later_file_waits_for_an_interrupted_one(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(
        _001_a="-- transaction: false\nSELECT 1;\nSELECT missing;", _002_b="CREATE TABLE b ();"
    )

    for _ in range(2):
        with pytest.raises(StatementFailedError, match=r"001_a\.sql:3:8"):
            run_deploy(migrations=directory)
    assert tables(conninfo) == set()


def test_a_missing_interrupted_file_is_refused(run_deploy: Deploy, write_migrations: WriteMigrations) -> None:
    """What is complete is exactly what the directory holds: yet there is something to do."""
    directory = write_migrations(_001_a="SELECT 1;", _002_b="-- transaction: false\nSELECT 1;\nSELECT missing;")
    with pytest.raises(StatementFailedError):
        run_deploy(migrations=directory)

    (directory / "002_b.sql").unlink()
    with pytest.raises(
        MigrationHistoryError, match=r"002_b\.sql: was interrupted on this database on .*, but the file is missing"
    ):
        run_deploy(migrations=directory)


def test_each_file_and_each_statement_is_an_event(run_deploy: Deploy, write_migrations: WriteMigrations) -> None:
    events: list[Event] = []

    run_deploy(migrations=write_migrations(_001_a="SELECT 1; SELECT 2;"), on_event=events.append)

    assert [(event.kind, event.migration) for event in events] == [
        ("applying", "001_a"),
        ("statement", "001_a"),
        ("statement", "001_a"),
        ("applied", "001_a"),
    ]


def test_a_plan_names_what_is_pending_and_writes_nothing(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();", _002_b="CREATE TABLE b (); CREATE TABLE c ();")

    everything = plan(conninfo, migrations=directory)
    assert (everything.version, len(everything.pending)) == (0, 2)
    assert query(conninfo, "SELECT to_regnamespace('observatory')") == [(None,)]

    run_deploy(migrations=directory, target=1)
    [script] = plan(conninfo, migrations=directory).pending
    assert [statement.sql for statement in script.statements] == ["CREATE TABLE b ()", "CREATE TABLE c ()"]
    assert tables(conninfo) == {"a"}


def test_the_variant_of_the_servers_edition_is_applied_and_compared(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(
        **{"001_a.apache": "CREATE TABLE apache ();", "001_a.community": "CREATE TABLE community ();"}
    )

    assert run_deploy(migrations=directory).applied == ("001_a",)
    assert tables(conninfo) == {"apache"}
    assert run_deploy(migrations=directory).applied == ()
    [entry] = status(conninfo).applied
    assert (entry.variant, entry.edition) == ("apache", "apache")


def test_a_database_without_timescaledb_is_refused(postgres: PostgresServer) -> None:
    with (
        postgres.fresh_database(extensions=False) as name,
        pytest.raises(UnsuitableServerError, match=r"has no TimescaleDB.*CREATE EXTENSION"),
    ):
        status(postgres.conninfo(dbname=name))


def test_a_read_only_server_is_refused(
    postgres: PostgresServer, run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    with postgres.superuser() as admin:
        admin.execute(
            f"ALTER DATABASE {conninfo_to_dict(conninfo)['dbname']} SET default_transaction_read_only = on".encode()
        )

    with pytest.raises(UnsuitableServerError, match=r"read-only transaction.*Connect to the primary"):
        run_deploy(migrations=write_migrations(_001_a="CREATE TABLE a ();"))


def test_a_standby_is_refused(rootfs: Path) -> None:
    with postgres_server(rootfs) as server, server.fresh_database() as name:
        server.stop()
        (server.directory / "data/standby.signal").touch()
        server.start()
        with pytest.raises(UnsuitableServerError, match=r"is a read-only standby. Connect to the primary"):
            status(server.conninfo(dbname=name))
        server.stop()
        (server.directory / "data/standby.signal").unlink()
        server.start()


def test_a_restart_of_the_server_leaves_no_partial_file(rootfs: Path, write_migrations: WriteMigrations) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();", _002_b="CREATE TABLE b ();\nSELECT pg_sleep(0);")
    with postgres_server(rootfs) as server, server.fresh_database() as name:
        conninfo = server.conninfo(dbname=name)

        def restart(event: Event) -> None:
            if (event.kind, event.migration, event.detail) == ("statement", "002_b", "1 of 2"):
                server.restart()

        run = partial(deploy, conninfo, migrations=directory, actor="tester", deployment_id="test")
        with pytest.raises(UnreachableError, match=r"002_b\.sql:2:1: the connection broke.*Run again"):
            run(on_event=restart)
        assert tables(conninfo) == {"a"}
        assert run().applied == ("002_b",)


def test_a_full_disk_is_a_readable_error_and_rolls_back_the_file(
    run_deploy: Deploy, conninfo: str, postgres: PostgresServer, write_migrations: WriteMigrations
) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(f"COPY (SELECT) TO PROGRAM 'mkdir {SMALL_DISK}/space'".encode())
        connection.execute(f"CREATE TABLESPACE small LOCATION '{SMALL_DISK}/space'".encode())
    fill = "INSERT INTO a SELECT repeat(n::text, 999) FROM generate_series(1, 99999) n;"
    directory = write_migrations(_001_a=f"CREATE TABLE a (x text) TABLESPACE small;\n{fill}")
    try:
        with pytest.raises(StatementFailedError, match=r"001_a\.sql:2:1: could not extend.*SQLSTATE 53100.*Free space"):
            run_deploy(migrations=directory)
        assert tables(conninfo) == set()
    finally:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(b"DROP TABLESPACE small")


def test_one_file_is_applied_after_its_predecessors(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();", _002_b="CREATE TABLE b ();", _003_c="CREATE TABLE c ();")

    with pytest.raises(MigrationHistoryError, match=r"002_b\.sql:1:1: 001_a\.sql must be applied before it"):
        run_deploy(migrations=directory, only="002_b.sql")
    assert tables(conninfo) == set()
    assert run_deploy(migrations=directory, only="001_a.sql").applied == ("001_a",)
    assert run_deploy(migrations=directory, only="002_b.sql").applied == ("002_b",)
    assert run_deploy(migrations=directory, only="001_a.sql").applied == ()
    assert tables(conninfo) == {"a", "b"}


def test_one_file_that_is_missing_or_above_the_target_is_refused(
    run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="SELECT 1;", _002_b="SELECT 2;")

    with pytest.raises(
        MigrationFileError, match=r"004_x\.sql: this edition has no such migration.*001_a\.sql, 002_b\.sql"
    ):
        run_deploy(migrations=directory, only="004_x.sql")
    with pytest.raises(MigrationHistoryError, match=r"002_b\.sql:1:1: is above the target 1"):
        run_deploy(migrations=directory, only="002_b.sql", target=1)


def test_one_file_with_variants_is_named_with_or_without_its_edition(
    run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(**{"001_a.apache": "SELECT 1;", "001_a.community": "SELECT 2;"}, _002_b="SELECT 3;")

    assert run_deploy(migrations=directory, only="001_a.sql").applied == ("001_a",)
    with pytest.raises(MigrationFileError, match=r"this edition has no such migration"):
        run_deploy(migrations=directory, only="001_a.community.sql")
    assert run_deploy(migrations=directory, only="001_a.apache.sql").applied == ()


def test_a_statement_that_cannot_run_in_a_transaction_is_an_error_with_a_remedy(
    run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    with pytest.raises(StatementFailedError, match=r"001_a\.sql:1:1: VACUUM cannot run .*'-- transaction: false'"):
        run_deploy(migrations=write_migrations(_001_a="VACUUM;"), linted=False)


def test_a_missing_extension_is_a_readable_error(run_deploy: Deploy, write_migrations: WriteMigrations) -> None:
    with pytest.raises(
        StatementFailedError, match=r'001_a\.sql:1:1: extension "postgis" is not available.*must first be installed'
    ):
        run_deploy(migrations=write_migrations(_001_a="CREATE EXTENSION postgis;"))


def test_a_ledger_without_backup_labels_is_read_and_extended(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    run_deploy(migrations=directory)
    with psycopg.connect(conninfo) as connection:
        connection.execute("ALTER TABLE observatory.schema_migrations DROP backup_label, DROP statement_running")

    assert [entry.backup_label for entry in status(conninfo).applied] == [None]
    assert run_deploy(migrations=directory).applied == ()
    write_migrations(_002_b="CREATE TABLE b ();")
    assert run_deploy(migrations=directory).applied == ("002_b",)
    assert status(conninfo).version == 2
