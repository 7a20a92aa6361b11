"""The jobs of the schema in pg_cron."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from observatory.backups.dump_manifest import CronJob
from observatory.backups.dump_restore import restore_cron_jobs
from observatory.database import (
    StatementFailedError,
    UnsuitableServerError,
    deploy,
    ensure_database,
    schedule_jobs,
)
from observatory.database.pg_cron_jobs import PREFIX
from tests.database.conftest import SHIPPED, Deploy, WriteMigrations
from tests.support.postgres import SETTINGS, PostgresServer, postgres_server
from tests.support.waiting import PATIENCE_S

DATABASE, OWNER = "observatory", "migrator"
JOBS = 14  # 5 refreshes, 8 retentions, the purge of their runs


@pytest.fixture(scope="module")
def server(rootfs: Path) -> Iterator[PostgresServer]:
    """A server with pg_cron as the stack configures it, and a migrated database."""
    settings = {
        "shared_preload_libraries": SETTINGS["shared_preload_libraries"] + ",pg_cron",
        "cron.database_name": DATABASE,
        "cron.use_background_workers": "on",
    }
    with postgres_server(rootfs, **settings) as server:
        ensure_database(server.conninfo(), name=DATABASE, owner=OWNER)
        ensure_database(server.conninfo(), name=DATABASE, owner=OWNER)
        deploy(as_owner(server), migrations=SHIPPED, actor="tester", deployment_id="test")
        yield server


@pytest.fixture
def connection(server: PostgresServer) -> Iterator[psycopg.Connection]:
    with psycopg.connect(as_owner(server), autocommit=True) as connection:
        yield connection


def as_owner(server: PostgresServer) -> str:
    return server.conninfo(user=OWNER, dbname=DATABASE)


def scheduled(connection: psycopg.Connection) -> list[tuple[str, str, str, int]]:
    return connection.execute("SELECT jobname, schedule, command, jobid FROM cron.job ORDER BY jobname").fetchall()


def test_jobs_are_scheduled_once(server: PostgresServer, connection: psycopg.Connection) -> None:
    first = schedule_jobs(as_owner(server))
    before = scheduled(connection)
    second = schedule_jobs(as_owner(server))

    assert len(first) == JOBS
    assert second == first
    assert [row[:3] for row in before] == [(PREFIX + job.name, job.schedule, job.command) for job in first]
    assert scheduled(connection) == before


def test_drifted_jobs_are_corrected_and_other_jobs_stay(server: PostgresServer, connection: psycopg.Connection) -> None:
    jobs = schedule_jobs(as_owner(server))
    connection.execute("SELECT cron.unschedule(%s)", [PREFIX + jobs[0].name])
    connection.execute("SELECT cron.schedule(%s, '1 1 * * *', 'SELECT 1')", [PREFIX + jobs[1].name])
    connection.execute("SELECT cron.schedule(%s, '1 1 * * *', 'SELECT 1')", [PREFIX + "forgotten"])
    connection.execute("SELECT cron.schedule('another''s', '1 1 * * *', 'SELECT 1')")

    schedule_jobs(as_owner(server))

    names = {PREFIX + job.name: replace(job, name=PREFIX + job.name) for job in jobs}
    found = {row[0]: row for row in scheduled(connection)}
    assert set(found) == {*names, "another's"}
    assert all(found[name][1:3] == (job.schedule, job.command) for name, job in names.items())
    connection.execute("SELECT cron.unschedule('another''s')")


def test_an_invalid_schedule_changes_nothing(server: PostgresServer, connection: psycopg.Connection) -> None:
    schedule_jobs(as_owner(server))
    before = scheduled(connection)
    connection.execute("INSERT INTO observatory.jobs VALUES ('a', '1 1 * * *', 'SELECT 1'), ('b', 'never', 'SELECT 1')")
    try:
        with pytest.raises(StatementFailedError, match=r'jobs of database "observatory".*invalid schedule: never'):
            schedule_jobs(as_owner(server))
        assert scheduled(connection) == before
    finally:
        connection.execute("DELETE FROM observatory.jobs WHERE name IN ('a', 'b')")


def test_the_jobs_run_as_the_owner(server: PostgresServer, connection: psycopg.Connection) -> None:
    """Each command as the schema has it, on a schedule that the test can wait for."""
    connection.execute(
        "INSERT INTO llm_traces"
        " (ts, trace_id, span_id, span_name, provider, model, input_type, duration_ms, status_code)"
        " SELECT now() - age, 't', 's', 'chat', 'openai', 'gpt-4', 'text', 5, 'OK'"
        " FROM unnest(ARRAY['10 minutes', '2 hours', '2 days', '99 days']::interval[]) AS age"
    )
    schedule_jobs(as_owner(server))
    # A job of a chunk waits for 5 s for those that read it, which a busy machine may stop for longer.
    connection.execute("ALTER PROCEDURE observatory.drop_old_chunks SET lock_timeout = '2min'")
    begun = connection.execute("SELECT clock_timestamp()").fetchone()
    expected = connection.execute("SELECT name, schedule FROM observatory.jobs").fetchall()
    connection.execute("UPDATE observatory.jobs SET schedule = '1 seconds'")
    try:
        schedule_jobs(as_owner(server))
        ended = (
            "SELECT DISTINCT ON (jobid) status, return_message FROM cron.job_run_details"
            " WHERE end_time IS NOT NULL AND jobid IN (SELECT jobid FROM cron.job)"  # those of earlier tests ran, too
            " AND start_time > %s"  # and these may have run before there were rows, where a minute began
            " ORDER BY jobid, status = 'succeeded'"
        )
        deadline = time.monotonic() + PATIENCE_S
        while len(done := connection.execute(ended.encode(), begun).fetchall()) < JOBS and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        for name, schedule in expected:
            connection.execute("UPDATE observatory.jobs SET schedule = %s WHERE name = %s", [schedule, name])
        schedule_jobs(as_owner(server))

    assert len(done) == JOBS
    assert {status for status, _ in done} == {"succeeded"}, done
    for name in ("llm_metrics_1min", "llm_metrics_1hour", "llm_metrics_1day", "cost_analysis_hourly"):
        assert connection.execute(f"SELECT sum(request_count) FROM {name}".encode()).fetchone() == (1,), name
    assert connection.execute("SELECT count(*) FROM llm_traces").fetchone() == (3,)


def test_jobs_without_pg_cron_are_an_error_with_a_remedy(conninfo: str, run_deploy: Deploy) -> None:
    run_deploy(migrations=SHIPPED)

    with pytest.raises(
        UnsuitableServerError, match=rf"has {JOBS} jobs, but no pg_cron to run them. Load it.*CREATE EXTENSION pg_cron"
    ):
        schedule_jobs(conninfo)


def test_a_schema_without_jobs_needs_no_pg_cron(
    conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    run_deploy(migrations=SHIPPED, target=3)

    assert schedule_jobs(conninfo) == ()


def test_own_jobs_of_a_dump_are_scheduled_again_and_those_of_the_schema_stay(
    server: PostgresServer, connection: psycopg.Connection
) -> None:
    schedule_jobs(as_owner(server))
    before = scheduled(connection)
    own = CronJob(name="own", schedule="0 3 * * *", command="SELECT 1", username=OWNER, active=False)
    nameless = own.model_copy(update={"name": None, "active": True})
    foreign = own.model_copy(update={"name": f"{PREFIX}foreign"})  # of a stack whose schema has it
    for _ in range(2):  # it may be repeated after a kill
        restore_cron_jobs(server.conninfo(dbname=DATABASE), [own, foreign, nameless])
        schedule_jobs(as_owner(server))
    found = scheduled(connection)
    assert [row for row in found if row[0] in {each[0] for each in before}] == before
    assert [row[:3] for row in found if row not in before] == [
        ("own", "0 3 * * *", "SELECT 1"),
        (None, "0 3 * * *", "SELECT 1"),
    ]
    active = "SELECT jobname, username, active FROM cron.job WHERE command = 'SELECT 1' ORDER BY jobname"
    assert connection.execute(active).fetchall() == [("own", OWNER, False), (None, OWNER, True)]
    restore_cron_jobs(server.conninfo(dbname=DATABASE), [])
    assert scheduled(connection) == before
