"""Deployments among each other and among the sessions of a live database."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest

from observatory.database import Deployment, LockHeldError, LockTimeoutError, deploy, status
from observatory.database.advisory_locks import MIGRATION_LOCK, session_lock
from observatory.database.connection import connect
from observatory.database.migrations.applying import Event
from tests.database.conftest import SHIPPED, Deploy, WriteMigrations


@pytest.fixture
def reader(conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations) -> Iterator[psycopg.Connection]:
    """A session that reads table `a` of migration 001 in an open transaction; 002 alters that table."""
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    run_deploy(migrations=directory)
    write_migrations(_002_b="SELECT 1;\nALTER TABLE a ADD b int;")
    with psycopg.connect(conninfo, application_name="reporting") as connection:
        connection.execute("SELECT count(*) FROM a")
        yield connection


@pytest.mark.parametrize("deployers", [2, 5])
def test_of_deployments_at_once_one_applies_and_the_others_report(conninfo: str, deployers: int) -> None:
    run = partial(deploy, conninfo, migrations=SHIPPED, target=3, actor="tester")
    with ThreadPoolExecutor(deployers) as pool:
        futures = [pool.submit(run, deployment_id=f"d{number}") for number in range(deployers)]
        deployments = [future.result() for future in futures]

    assert sorted(len(deployment.applied) for deployment in deployments) == [0] * (deployers - 1) + [3]
    assert {deployment.version for deployment in deployments} == {3}
    assert len({entry.deployment_id for entry in status(conninfo).applied}) == 1


def test_waiting_for_another_deployment_ends_with_its_name_and_changes_nothing(
    conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    events: list[Event] = []
    with (
        connect(conninfo, purpose="deploy other") as other,
        session_lock(other, MIGRATION_LOCK, wait_s=0),
        pytest.raises(
            LockHeldError, match=rf"by pid {other.info.backend_pid} \(observatory:deploy other, user postgres"
        ),
    ):
        run_deploy(migrations=directory, on_event=events.append)

    assert [event.kind for event in events] == ["waiting"]
    assert status(conninfo).version == 0
    assert run_deploy(migrations=directory).version == 1


def test_the_lock_is_free_again_when_its_holders_connection_ends(conninfo: str) -> None:
    with connect(conninfo, purpose="one") as one, connect(conninfo, purpose="two") as two:
        with session_lock(one, MIGRATION_LOCK, wait_s=0):
            two.execute("SELECT pg_terminate_backend(%s)", [one.info.backend_pid])
            with pytest.raises(psycopg.errors.AdminShutdown):
                one.execute("SELECT 1")

        with session_lock(two, MIGRATION_LOCK, wait_s=10):
            pass


def test_waiters_do_not_stand_in_the_way_of_an_index_built_concurrently(
    conninfo: str, write_migrations: WriteMigrations
) -> None:
    concurrently = "-- transaction: false\nCREATE TABLE a (x int);\nCREATE INDEX CONCURRENTLY a_x ON a (x);"
    directory = write_migrations(_001_a=concurrently)
    leader_has_the_lock = threading.Event()
    all_wait = threading.Barrier(11)

    def lead() -> Deployment:
        def hold_until_all_wait(event: Event) -> None:
            if (event.kind, event.detail) == ("statement", "1 of 2"):
                leader_has_the_lock.set()
                all_wait.wait()

        return run(deployment_id="leader", on_event=hold_until_all_wait)

    def follow(number: int) -> Deployment:
        leader_has_the_lock.wait()

        def join_the_others(_: Event) -> None:
            all_wait.wait()

        return run(deployment_id=f"waiter {number}", on_event=join_the_others)

    run = partial(deploy, conninfo, migrations=directory, actor="tester")
    with ThreadPoolExecutor(11) as pool:
        leader = pool.submit(lead)
        waiters = [pool.submit(follow, number) for number in range(10)]

        assert leader.result().applied == ("001_a",)
        assert [waiter.result().applied for waiter in waiters] == [()] * 10


def test_whoever_blocks_a_migration_is_named_and_the_file_is_undone(
    conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations, reader: psycopg.Connection
) -> None:
    with pytest.raises(LockTimeoutError) as caught:
        run_deploy(migrations=write_migrations())

    message = str(caught.value)
    assert message.startswith("002_b.sql:2:1: canceling statement due to lock timeout")
    assert f"pid {reader.info.backend_pid} (user postgres, reporting, idle in transaction for " in message
    assert "SELECT count(*) FROM a" in message
    assert status(conninfo).version == 1


def test_a_blocked_migration_is_tried_again_until_its_lock_is_free(
    run_deploy: Deploy, write_migrations: WriteMigrations, reader: psycopg.Connection
) -> None:
    events: list[Event] = []

    def end_the_reader(event: Event) -> None:
        events.append(event)
        if event.kind == "retrying":
            reader.rollback()

    assert run_deploy(migrations=write_migrations(), retry=1, on_event=end_the_reader).applied == ("002_b",)
    assert [event.kind for event in events].count("retrying") == 1


def test_a_writer_behind_a_blocked_migration_goes_on_after_the_lock_timeout(
    conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations, reader: psycopg.Connection
) -> None:
    with ThreadPoolExecutor(1) as pool, psycopg.connect(conninfo, autocommit=True) as writer:
        blocked = pool.submit(run_deploy, migrations=write_migrations())
        queued = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'a'::regclass"
        while not writer.execute(queued).fetchone():
            assert not blocked.done()

        writer.execute("INSERT INTO a DEFAULT VALUES")

        with pytest.raises(LockTimeoutError):
            blocked.result()
    assert reader.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
