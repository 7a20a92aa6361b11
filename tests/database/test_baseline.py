"""A database that psql made from the first files is noticed, compared, recorded and then migrated."""

from collections.abc import Iterator

import psycopg
import pytest

from observatory.database import (
    BaselineRefusedError,
    LockHeldError,
    ObjectsInTheWayError,
    deploy,
    list_migrations,
    plan,
    plan_baseline,
    record_baseline,
)
from observatory.database.advisory_locks import MIGRATION_LOCK, session_lock
from tests.database.conftest import SHIPPED, Deploy, WriteMigrations

FIRST = ("001_initial_schema.sql", "002_add_hypertables.sql", "003_create_indexes.sql")


@pytest.fixture
def adopted(conninfo: str) -> Iterator[psycopg.Connection]:
    """A connection to a database that has the objects of the first three files, as psql makes them."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for file in FIRST:
            connection.execute((SHIPPED / file).read_bytes())
        yield connection


def record(conninfo: str, version: int) -> None:
    record_baseline(
        conninfo, migrations=SHIPPED, version=version, actor="alice@host", deployment_id="test", lock_wait_s=0
    )


def ledger_rows(connection: psycopg.Connection) -> int:
    [exists] = connection.execute("SELECT to_regclass('observatory.schema_migrations') IS NOT NULL").fetchone() or [0]
    if not exists:
        return 0
    [count] = connection.execute("SELECT count(*) FROM observatory.schema_migrations").fetchone() or [0]
    return int(count)


def test_plan_and_deploy_name_the_option_before_anything_is_touched(
    adopted: psycopg.Connection, conninfo: str, run_deploy: Deploy
) -> None:
    with pytest.raises(ObjectsInTheWayError) as planned:
        plan(conninfo, migrations=SHIPPED)
    with pytest.raises(ObjectsInTheWayError) as deployed:
        run_deploy(migrations=SHIPPED)

    assert str(planned.value) == str(deployed.value)
    assert planned.value.exit_code == 3
    assert "001_initial_schema.sql:8:1: table llm_traces already exists" in str(planned.value)
    assert "more objects. Nothing was changed." in str(planned.value)
    assert "`observatory deploy database --baseline 3`" in str(planned.value)
    assert ledger_rows(adopted) == 0


def test_a_recorded_database_continues_with_the_next_file(
    adopted: psycopg.Connection, conninfo: str, run_deploy: Deploy
) -> None:
    adopted.execute("CREATE TABLE of_other_tools ()")
    adopted.execute("CREATE SCHEMA observatory")
    found = plan_baseline(conninfo, migrations=SHIPPED, version=3)
    assert ledger_rows(adopted) == 0
    record(conninfo, 3)
    listed = list_migrations(conninfo, migrations=SHIPPED)
    done = run_deploy(migrations=SHIPPED)

    assert (found.accepted, found.migrations) == (True, FIRST)
    assert found.extra == ("table public.of_other_tools",)
    assert [(each.state, each.applied_by) for each in listed.migrations[:4]] == [
        *[("baselined", "baseline by alice@host")] * 3,
        ("pending", None),
    ]
    assert done.applied[0] == "004_continuous_aggregates"
    with pytest.raises(BaselineRefusedError, match="has a ledger with 8 rows and is at version 8"):
        record(conninfo, 3)


@pytest.mark.parametrize(
    ("damage", "version", "message"),
    [
        ("DROP INDEX llm_traces_session_ts", 3, "llm_traces_session_ts is missing"),
        ("ALTER TABLE users ALTER COLUMN name TYPE varchar(10)", 3, r"public.users.name is character varying\(10\)"),
        ("SELECT set_chunk_time_interval('llm_logs', INTERVAL '1 hour')", 3, "is ts 01:00:00, expected ts 1 day"),
        ("SELECT 1", 2, "has objects that only later migrations make: index public.api_keys_user"),
        ("SELECT 1", 4, "is missing"),
        ("SELECT 1", 99, "99: no migration has this number. Name one from 1 to"),
    ],
)
def test_a_database_that_differs_is_refused_and_unchanged(
    adopted: psycopg.Connection, conninfo: str, damage: str, version: int, message: str
) -> None:
    adopted.execute(damage.encode())
    with pytest.raises(BaselineRefusedError, match=message) as refused:
        record(conninfo, version)

    assert refused.value.exit_code == 3
    assert ledger_rows(adopted) == 0


def test_an_object_of_another_role_is_refused(adopted: psycopg.Connection, conninfo: str) -> None:
    adopted.execute("CREATE ROLE previous; ALTER TABLE users OWNER TO previous")
    try:
        found = plan_baseline(conninfo, migrations=SHIPPED, version=3)
    finally:
        adopted.execute("ALTER TABLE users OWNER TO postgres; DROP ROLE previous")

    assert (found.accepted, found.extra) == (False, ())
    assert "owner of public.users is previous" in found.differences


def test_a_ledger_that_a_failed_deployment_left_empty_is_no_obstacle(
    conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    with pytest.raises(Exception, match="division by zero"):
        run_deploy(migrations=write_migrations(_001_a="SELECT 1/0;"))
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute((SHIPPED / FIRST[0]).read_bytes())
        record(conninfo, 1)
        assert ledger_rows(connection) == 1


def test_a_running_deployment_keeps_the_baseline_out(adopted: psycopg.Connection, conninfo: str) -> None:
    with session_lock(adopted, MIGRATION_LOCK, wait_s=0), pytest.raises(LockHeldError):
        record(conninfo, 3)
    assert ledger_rows(adopted) == 0


def test_only_objects_that_stay_are_in_the_way(
    conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a (id int); CREATE VIEW v AS SELECT 1 AS one;")
    run_deploy(migrations=directory)
    write_migrations(
        _002_b="DROP TABLE a; CREATE TABLE a (id int, b int); CREATE INDEX i ON a (b); CREATE TABLE IF NOT EXISTS a ();"
        "CREATE OR REPLACE VIEW v AS SELECT 2 AS one; CREATE TEMP TABLE v ();"
        "DO $$ BEGIN EXECUTE 'ALTER TABLE a RENAME TO c'; END $$; CREATE TABLE a ();"
    )
    run_deploy(migrations=directory)
    write_migrations(
        _003_c="CREATE SEQUENCE s; CREATE TYPE mood AS ENUM ('ok'); CREATE SCHEMA extra; CREATE VIEW v AS SELECT 1;"
    )
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE SEQUENCE s; CREATE TYPE mood AS ENUM ('ok'); CREATE SCHEMA extra")
    with pytest.raises(ObjectsInTheWayError) as refused:
        deploy(conninfo, migrations=directory, actor="tester", deployment_id="test", retry=0)

    assert str(refused.value) == (
        "003_c.sql:1:1: sequence s already exists, 003_c.sql:1:20: type mood already exists, "
        "003_c.sql:1:53: schema extra already exists, 003_c.sql:1:74: view v already exists. Nothing was changed. "
        "Rename or drop what is in the way, or write IF NOT EXISTS where the existing object is the right one"
    )
