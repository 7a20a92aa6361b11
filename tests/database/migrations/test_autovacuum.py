"""Autovacuum holds locks that conflict with most ALTERs: PostgreSQL cancels an ordinary one for the migration."""

import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg import errors as pg

from observatory.database import deploy
from observatory.database.migrations.blocking_sessions import BlockingSession
from observatory.database.migrations.events import Event
from observatory.database.migrations.lock_retries import AutovacuumBlocksError, lock_timeout_error
from tests.database.conftest import Deploy, WriteMigrations
from tests.support.postgres import postgres_server

# It sleeps 100 ms after each page, so it works on the table until it is cancelled.
SLOW = "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1, autovacuum_vacuum_threshold = 1"
WORKERS = "SELECT query FROM pg_stat_activity WHERE backend_type = 'autovacuum worker' AND query ~ 'public.a'"


@pytest.fixture(scope="module")
def conninfo(rootfs: Path) -> Iterator[str]:
    """A fresh database of a server whose autovacuum starts within a second."""
    with postgres_server(rootfs, autovacuum_naptime="1s") as server, server.fresh_database() as name:
        yield server.conninfo(dbname=name)


@pytest.fixture
def run_deploy(conninfo: str) -> Deploy:
    return partial(deploy, conninfo, actor="tester", deployment_id="test")


def test_a_migration_waits_until_postgresql_cancels_an_autovacuum(
    conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    rows = "INSERT INTO a SELECT n, repeat('x', 500) FROM generate_series(1, 20000) AS n;\nDELETE FROM a;"
    run_deploy(migrations=write_migrations(_001_a=f"CREATE TABLE a (n int, t text) WITH ({SLOW});\n{rows}"))
    write_migrations(_002_b="CREATE TABLE b ();\nALTER TABLE a ADD c int;")
    events: list[Event] = []
    with psycopg.connect(conninfo, autocommit=True) as connection:
        deadline = time.monotonic() + 120
        while not connection.execute(WORKERS).fetchone():
            assert time.monotonic() < deadline
            time.sleep(0.05)

        done = run_deploy(migrations=write_migrations(), retry=3, on_event=events.append)

        assert done.applied == ("002_b",)
        assert connection.execute("SHOW lock_timeout").fetchone() == ("0",)
    [blocked, *_] = [event.detail for event in events if event.kind == "blocked"]
    assert "a worker of autovacuum" in blocked
    assert "public.a" in blocked
    reasons = [event.detail for event in events if event.kind == "retrying"]  # of the first attempt none may be known
    assert any("waits until PostgreSQL cancels the autovacuum" in reason for reason in reasons)


def _session(query: str, *, autovacuum: bool = True) -> BlockingSession:
    return BlockingSession(
        pid=7, user="?", application="", state="active", query=query, age=timedelta(), autovacuum=autovacuum
    )


def test_an_autovacuum_that_prevents_wraparound_is_named_with_what_to_do() -> None:
    session = _session("autovacuum: VACUUM public.a (to prevent wraparound)")

    error = lock_timeout_error("002_b.sql:1:1", pg.LockNotAvailable("canceling"), (session,))

    assert not isinstance(error, AutovacuumBlocksError)
    assert "PostgreSQL does not cancel an autovacuum that prevents wraparound" in str(error)
    assert "SELECT pg_cancel_backend(7)" in str(error)


def test_no_session_is_outlasted_where_another_one_blocks_too() -> None:
    sessions = (_session("autovacuum: VACUUM public.a"), _session("SELECT 1", autovacuum=False))

    for found, outlasted in ((sessions[:1], True), (sessions, False), ((), False)):
        error = lock_timeout_error("002_b.sql:1:1", pg.LockNotAvailable("canceling"), found)
        assert isinstance(error, AutovacuumBlocksError) == outlasted
