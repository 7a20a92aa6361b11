"""The deployment lock is lost with its connection: it is taken again where it is free, and its new holder is named."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from observatory.database import LockHeldError, deploy
from observatory.database.connection import connect
from observatory.database.ping import answered
from observatory.delivery.errors import LockLostError
from observatory.documents.journal import entries
from observatory.operations.deployment_lock import deployment_lock, waiting_for_lock
from observatory.security.actor import user
from observatory.workspace import Workspace
from tests.support.postgres import PostgresServer
from tests.support.sessions import terminate_others

HOLDER = rf"observatory:{user()}@{socket.gethostname().partition('.')[0]}: deploy application v2, user .*since 20\d\d-"


@pytest.fixture
def conninfo(postgres: PostgresServer) -> Iterator[str]:
    with postgres.fresh_database() as name:
        yield postgres.conninfo(dbname=name)


def workspace(root: Path, stack: str = "local") -> Workspace:
    return Workspace(root=root, stack=stack)


class Journal:
    def __init__(self) -> None:
        self.events: list[str] = []

    def record(self, event: str, **_details: Any) -> None:
        self.events.append(event)


def test_a_second_command_is_refused_with_operator_host_command_and_start(conninfo: str, tmp_path: Path) -> None:
    with (
        deployment_lock(workspace(tmp_path), conninfo, command="deploy application v2"),
        pytest.raises(LockHeldError, match=HOLDER + r".*--wait SECONDS"),
        deployment_lock(workspace(tmp_path, "other"), conninfo, command="deploy database"),
    ):
        pass


def test_a_command_that_waits_gets_the_lock_when_it_is_released(conninfo: str, tmp_path: Path) -> None:
    done = threading.Event()

    def hold() -> None:
        with deployment_lock(workspace(tmp_path), conninfo, command="up"):
            held.set()
            done.wait(60)

    held, holding = threading.Event(), threading.Thread(target=hold)
    holding.start()
    assert held.wait(60)
    threading.Timer(0.3, done.set).start()
    with waiting_for_lock(60), deployment_lock(workspace(tmp_path, "other"), conninfo, command="deploy database"):
        assert done.is_set()
    holding.join()


def test_a_lost_lock_is_taken_again_where_it_is_free(conninfo: str, tmp_path: Path) -> None:
    journal = Journal()
    with deployment_lock(workspace(tmp_path), conninfo, command="deploy application v2") as lock:
        lock.check(journal.record)
        assert journal.events == []
        terminate_others(conninfo)
        lock.check(journal.record)
        lock.check(journal.record)
        assert journal.events == ["lock-regained"]
        with (
            pytest.raises(LockHeldError, match=HOLDER),
            deployment_lock(workspace(tmp_path, "other"), conninfo, command="up"),
        ):
            pass
    with deployment_lock(workspace(tmp_path, "other"), conninfo, command="up"):  # released
        pass


def test_a_lock_that_another_command_has_taken_is_lost_and_its_holder_is_named(conninfo: str, tmp_path: Path) -> None:
    journal = Journal()
    with deployment_lock(workspace(tmp_path, "first"), conninfo, command="release deploy v1") as lock:
        terminate_others(conninfo)
        with deployment_lock(workspace(tmp_path), conninfo, command="deploy application v2"):
            with pytest.raises(LockLostError, match=HOLDER):
                lock.check(journal.record)
            with (  # the steps of a workflow, too
                pytest.raises(LockLostError),
                deployment_lock(workspace(tmp_path, "first"), conninfo, command="deploy database"),
            ):
                pass
        lock.check(journal.record)  # the other one has ended
    assert journal.events == ["lock-lost", "lock-regained"]
    assert [entry.event for entry in entries(workspace(tmp_path, "first").journal)] == ["lock-lost"]


def migrate(conninfo: str, directory: Path, number: int) -> None:
    """Apply a migration, without the deployment lock."""
    (directory / f"{number:03}_{number}.sql").write_text(f"CREATE TABLE t{number} (id bigint PRIMARY KEY);")
    deploy(conninfo, migrations=directory, actor="test", deployment_id="test")


def test_a_lock_that_another_command_had_meanwhile_to_migrate_is_lost(conninfo: str, tmp_path: Path) -> None:
    journal, migrations = Journal(), tmp_path / "migrations"
    migrations.mkdir()
    migrate(conninfo, migrations, 1)
    with deployment_lock(workspace(tmp_path), conninfo, command="release deploy v2") as lock:
        with deployment_lock(workspace(tmp_path), conninfo, command="deploy database"):
            migrate(conninfo, migrations, 2)  # by this process, in a step of its workflow
        terminate_others(conninfo)
        lock.check(journal.record)
        assert journal.events == ["lock-regained"]
        terminate_others(conninfo)
        with deployment_lock(workspace(tmp_path, "other"), conninfo, command="deploy database"):
            migrate(conninfo, migrations, 3)
        with pytest.raises(LockLostError, match="another command has changed the schema"):
            lock.check(journal.record)
    assert journal.events == ["lock-regained", "lock-lost"]


def test_a_database_that_does_not_respond_is_no_loss(postgres: PostgresServer, conninfo: str, tmp_path: Path) -> None:
    journal, name = Journal(), psycopg.conninfo.conninfo_to_dict(conninfo)["dbname"]
    with (
        deployment_lock(workspace(tmp_path), conninfo, command="deploy application v2") as lock,
        postgres.superuser() as admin,
    ):
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        for _ in range(2):
            lock.check(journal.record)
        assert journal.events == ["lock-unknown"]
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        lock.check(journal.record)
    assert journal.events == ["lock-unknown", "lock-regained"]


def test_a_silent_server_does_not_hold_up_a_check(conninfo: str) -> None:
    with connect(conninfo, purpose="test") as connection, connect(conninfo, purpose="other") as other:
        with other.transaction():
            other.execute("SELECT pg_advisory_xact_lock(1)")
            connection.pgconn.send_query(b"SELECT pg_advisory_xact_lock(1)")
            assert answered(connection, sent=True, timeout_s=0.1) is None
        assert answered(connection, sent=True, timeout_s=60) is True
        assert answered(connection, sent=False, timeout_s=60) is True
        assert connection.execute("SELECT 1").fetchone() == (1,)
