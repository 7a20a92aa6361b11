"""Concurrent deployments: one holds the migration lock, the others wait and then report that nothing is pending."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest

from observatory.database import Deployment, LockHeldError, deploy, status
from observatory.database.advisory_locks import MIGRATION_LOCK, session_lock
from observatory.database.connection import connect
from observatory.database.migrations.events import Event
from tests.database.conftest import SHIPPED, Deploy, WriteMigrations


@pytest.mark.parametrize("deployers", [2, 5])
def test_one_of_several_concurrent_deployments_applies_and_the_others_report(conninfo: str, deployers: int) -> None:
    run = partial(deploy, conninfo, migrations=SHIPPED, target=3, actor="tester")
    with ThreadPoolExecutor(deployers) as pool:
        futures = [pool.submit(run, deployment_id=f"d{number}") for number in range(deployers)]
        deployments = [future.result() for future in futures]

    assert sorted(len(deployment.applied) for deployment in deployments) == [0] * (deployers - 1) + [3]
    assert {deployment.version for deployment in deployments} == {3}
    assert len({entry.deployment_id for entry in status(conninfo).applied}) == 1


def test_waiting_for_another_deployment_ends_with_an_error_that_names_it(
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


def test_the_lock_is_released_when_the_holders_connection_ends(conninfo: str) -> None:
    with connect(conninfo, purpose="one") as one, connect(conninfo, purpose="two") as two:
        with session_lock(one, MIGRATION_LOCK, wait_s=0):
            two.execute("SELECT pg_terminate_backend(%s)", [one.info.backend_pid])
            with pytest.raises(psycopg.errors.AdminShutdown):
                one.execute("SELECT 1")

        with session_lock(two, MIGRATION_LOCK, wait_s=60):
            pass


def test_waiting_deployments_do_not_block_an_index_built_concurrently(
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

        def join_the_others(event: Event) -> None:
            if event.kind == "waiting":
                all_wait.wait()

        return run(deployment_id=f"waiter {number}", on_event=join_the_others)

    run = partial(deploy, conninfo, migrations=directory, actor="tester")
    with ThreadPoolExecutor(11) as pool:
        leader = pool.submit(lead)
        waiters = [pool.submit(follow, number) for number in range(10)]

        assert leader.result().applied == ("001_a",)
        assert [waiter.result().applied for waiter in waiters] == [()] * 10
