"""The next deployment finishes a killed one, wherever it was killed."""

import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from observatory.database import LockHeldError, deploy, load_migrations
from observatory.database.migrations.ledger import statements_digest
from observatory.database.migrations.statements import parse
from proofs.migrations import deploy_at_once, kill_everywhere, write_one_by_one
from tests.database.conftest import SHIPPED, Deploy, WriteMigrations
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.slow

CATALOGUE = """
    SELECT 'column', c.oid::regclass::text, a.attname, format_type(a.atttypid, a.atttypmod) || a.attnotnull
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'i')
    UNION ALL
    SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid) || convalidated
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'index', indrelid::regclass::text, indexrelid::regclass::text, indisvalid::text
    FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE c.relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'chunk interval', hypertable_name, column_name, time_interval::text FROM timescaledb_information.dimensions
    UNION ALL
    SELECT 'migration', name, sha256, statements_done || '/' || statements_total FROM observatory.schema_migrations
    ORDER BY 1, 2, 3, 4
"""


def catalogue(conninfo: str) -> list[tuple[str, ...]]:
    with psycopg.connect(conninfo) as connection:
        return connection.execute(CATALOGUE.encode()).fetchall()


def deploy_and_die(conninfo: str, directory: Path, boundary: int) -> None:
    command = [sys.executable, "-m", "tests.database.killed_deploy", conninfo, str(directory), str(boundary)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(postgres: PostgresServer) -> list[tuple[str, ...]]:
    with postgres.fresh_database() as name:
        conninfo = postgres.conninfo(dbname=name)
        deploy(conninfo, migrations=SHIPPED, target=3, actor="tester", deployment_id="test")
        return catalogue(conninfo)


# Boundaries count each start of a file and each statement: 11 + 3 + 11 statements in 001 to 003.
@pytest.mark.parametrize("boundary", [0, 5, 12, 14, 16, 27])
def test_the_next_deployment_finishes_a_killed_one(
    conninfo: str, run_deploy: Deploy, undisturbed: list[tuple[str, ...]], boundary: int
) -> None:
    deploy_and_die(conninfo, SHIPPED, boundary)

    deploy(conninfo, migrations=SHIPPED, target=3, actor="tester", deployment_id="next")

    assert catalogue(conninfo) == undisturbed
    assert run_deploy(migrations=SHIPPED, target=3).applied == ()


@pytest.mark.parametrize("edition", ["apache", pytest.param("community", marks=pytest.mark.community)])
def test_shipped_files_are_finished_after_a_kill_at_several_boundaries(
    request: pytest.FixtureRequest, edition: str
) -> None:
    server = request.getfixturevalue("community_postgres" if edition == "community" else "postgres")

    failures, tried = kill_everywhere(server, SHIPPED, rounds=1, share=23)

    assert failures == []
    assert tried > 3


@pytest.mark.parametrize("edition", ["apache", pytest.param("community", marks=pytest.mark.community)])
def test_files_without_a_transaction_resume_after_a_kill_at_any_boundary(
    request: pytest.FixtureRequest, tmp_path: Path, edition: str
) -> None:
    """None of their statements bears to run twice: what an interrupted one left has to be noticed."""
    server = request.getfixturevalue("community_postgres" if edition == "community" else "postgres")

    failures, tried = kill_everywhere(server, write_one_by_one(tmp_path / "files", edition), rounds=1, share=1)

    assert failures == []
    assert tried == (1 + 10 + 1) + (1 + 3 + 1 if edition == "community" else 0)


@pytest.mark.parametrize("boundary", [3, 6, 9])
def test_a_deployment_of_an_earlier_release_that_was_killed_is_finished(
    postgres: PostgresServer, tmp_path: Path, conninfo: str, boundary: int
) -> None:
    """Its ledger has a hash for each finished statement instead of one digest."""
    directory = write_one_by_one(tmp_path / "files", "apache")
    [migration] = load_migrations(directory, "apache")
    hashes = [statement.sha256 for statement in parse(migration).statements]
    deploy_and_die(conninfo, directory, boundary)
    with psycopg.connect(conninfo) as connection:
        connection.execute("ALTER TABLE observatory.schema_migrations ADD statement_hashes text[]")
        connection.execute(
            "UPDATE observatory.schema_migrations SET statement_hashes = (%s::text[])[:statements_done]", [hashes]
        )
        connection.execute("ALTER TABLE observatory.schema_migrations DROP statements_digest, DROP note")

    deploy(conninfo, migrations=directory, actor="tester", deployment_id="next")

    with psycopg.connect(conninfo) as connection:
        ledger = "SELECT statements_done, statements_digest, statement_running FROM observatory.schema_migrations"
        assert connection.execute(ledger).fetchall() == [(len(hashes), statements_digest(hashes), None)]
    with postgres.fresh_database() as name:
        deploy(postgres.conninfo(dbname=name), migrations=directory, actor="tester", deployment_id="test")
        assert catalogue(conninfo) == catalogue(postgres.conninfo(dbname=name))


def test_one_of_twenty_concurrent_processes_applies_and_the_others_report(postgres: PostgresServer) -> None:
    assert deploy_at_once(postgres) == ""


def test_a_deployment_killed_in_a_long_statement_releases_its_lock_at_once(
    conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();\nSELECT pg_sleep(600);")
    command = [sys.executable, "-m", "tests.database.killed_deploy", conninfo, str(directory), "99"]
    with subprocess.Popen(command) as process, psycopg.connect(conninfo, autocommit=True) as watcher:
        sleeping = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)' AND datname = current_database()"
        while not watcher.execute(f"{sleeping} AND pid <> pg_backend_pid()".encode()).fetchone():
            assert process.poll() is None
        with pytest.raises(
            LockHeldError, match=r"held by pid \d+ \(observatory:deploy killed, user postgres\) since 2"
        ):
            deploy(conninfo, migrations=directory, actor="t", deployment_id="t", lock_wait_s=0)
        process.kill()

    write_migrations(_001_a="CREATE TABLE a ();")
    assert deploy(conninfo, migrations=directory, actor="t", deployment_id="t", lock_wait_s=120).version == 1
