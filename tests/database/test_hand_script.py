"""The script for psql leaves the database as a deployment does: psql runs it, and nothing is pending afterwards."""

import subprocess

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from observatory.database import (
    MigrationHistoryError,
    ObjectsInTheWayError,
    StatementFailedError,
    deploy,
    list_migrations,
    write_script,
)
from observatory.database.advisory_locks import DEPLOYMENT_LOCK, session_lock
from tests.database.conftest import SHIPPED, Deploy, WriteMigrations
from tests.support.postgres import PostgresServer
from tests.support.waiting import until

AWKWARD = """-- An awkward file: comments, quotes, meta characters of psql.
CREATE TABLE "Odd:Name" (a int[], "b;" text DEFAULT E'\\\\;:x\\'', c text DEFAULT $q$;\\d :x ' $q$); -- a comment
INSERT INTO "Odd:Name" (a) VALUES ('{1,2,3}'); /* ; */
SET LOCAL work_mem = '8MB';
SELECT a[1:2] FROM "Odd:Name" -- the last line has no semicolon, but a comment
;
CREATE FUNCTION twice(x int) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT x; SELECT 2 * x; END;
SET search_path = '';
"""
SEPARATE = """-- transaction: false
CREATE TABLE b (x int);
INSERT INTO b VALUES (1);
CREATE INDEX CONCURRENTLY b_x ON b (x);
SET work_mem = '9MB';
VACUUM b
"""


def run_psql(server: PostgresServer, conninfo: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script by the psql of the server's installation, until its session has ended and holds no lock any more."""
    parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    command = [f"{server.binaries}/psql", "-X", "-v", "ON_ERROR_STOP=1", "-h", "/srv/run", "-p", str(parts["port"])]
    command += ["-U", str(parts["user"]), "-d", str(parts["dbname"]), "-f", "-"]
    done = subprocess.run(server.sandboxed(command), input=script, capture_output=True, text=True, check=False)
    sessions = "SELECT FROM pg_stat_activity WHERE application_name = 'psql' AND datname = %s"
    with server.superuser() as observer:
        until(lambda: observer.execute(sessions, [parts["dbname"]]).fetchone() is None, "the session of psql to end")
    return done


def rows(conninfo: str) -> list[tuple[object, ...]]:
    with psycopg.connect(conninfo) as connection:
        return connection.execute(
            "SELECT version, name, sha256, source, statements_done, statements_total, statement_running, edition, "
            "statements_digest FROM observatory.schema_migrations ORDER BY version"
        ).fetchall()


def test_after_the_script_nothing_is_pending(
    postgres: PostgresServer, conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a=AWKWARD, _002_b=SEPARATE, _003_c="SELECT current_setting('work_mem');")
    script = write_script(conninfo, migrations=directory)
    done = run_psql(postgres, conninfo, script.sql)
    assert done.returncode == 0, done.stderr
    listed = list_migrations(conninfo, migrations=directory)
    by_hand = rows(conninfo)
    with postgres.fresh_database() as name:
        deployed = postgres.conninfo(dbname=name)
        deploy(deployed, migrations=directory, actor="tester", deployment_id="test")
        assert by_hand == rows(deployed)

    assert run_deploy(migrations=directory).applied == ()
    assert (script.version, script.target, script.files) == (0, 3, ("001_a.sql", "002_b.sql", "003_c.sql"))
    assert [(each.state, each.applied_by) for each in listed.migrations] == [("applied", "psql by postgres")] * 3
    assert [row[3] for row in by_hand][:2] == [AWKWARD, SEPARATE]
    assert [row[4:7] for row in by_hand] == [(6, 6, None), (5, 5, None), (1, 1, None)]
    assert "002_b.sql: NOT in a transaction" in script.sql


def test_another_role_is_refused(
    postgres: PostgresServer, conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    script = write_script(conninfo, migrations=directory)
    with postgres.superuser() as admin:
        admin.execute("CREATE ROLE dba SUPERUSER LOGIN")
        try:
            refused = run_psql(postgres, make_conninfo(conninfo, user="dba"), script.sql)
        finally:
            admin.execute("DROP ROLE dba")

    assert refused.returncode == 3
    assert "The script is for the role postgres, and this session is of dba" in refused.stderr
    assert run_deploy(migrations=directory).applied == ("001_a",)


def test_the_shipped_migrations_run_as_a_script(postgres: PostgresServer, conninfo: str, run_deploy: Deploy) -> None:
    run_deploy(migrations=SHIPPED, target=3)
    before = write_script(conninfo, migrations=SHIPPED)
    first = run_psql(postgres, conninfo, before.sql)
    second = run_psql(postgres, conninfo, before.sql)

    assert first.returncode == 0, first.stderr
    assert run_deploy(migrations=SHIPPED).applied == ()
    assert second.returncode != 0
    assert "The ledger is not the one of version 3 that this script was made for" in second.stderr
    assert write_script(conninfo, migrations=SHIPPED).sql.startswith("-- Nothing is pending")


def test_a_failed_file_leaves_what_a_deployment_leaves(
    postgres: PostgresServer, conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a (); SELECT 1/0;")
    script = write_script(conninfo, migrations=directory).sql
    with psycopg.connect(conninfo, autocommit=True) as other, session_lock(other, DEPLOYMENT_LOCK, wait_s=0):
        locked = run_psql(postgres, conninfo, script)
    failed = run_psql(postgres, conninfo, script)

    assert "Another deployment is running" in locked.stderr
    assert "division by zero" in failed.stderr
    assert failed.returncode == 3
    write_migrations(_001_a="CREATE TABLE a ();")
    assert run_deploy(migrations=directory).applied == ("001_a",)


def test_what_no_script_can_do_is_refused(conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations) -> None:
    directory = write_migrations(_001_a="-- transaction: false\nCREATE TABLE a ();\nSELECT 1/0;")
    with pytest.raises(StatementFailedError):
        run_deploy(migrations=directory)
    with pytest.raises(MigrationHistoryError, match=r"001_a\.sql: was interrupted, and a script cannot resume it"):
        write_script(conninfo, migrations=directory)


def test_a_database_that_other_tools_made_is_refused(conninfo: str, write_migrations: WriteMigrations) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE TABLE a ()")
    with pytest.raises(ObjectsInTheWayError):
        write_script(conninfo, migrations=directory)
