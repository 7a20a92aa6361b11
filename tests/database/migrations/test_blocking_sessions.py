"""A migration that waits for a lock names the sessions that block it, rolls its file back and retries."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from observatory.database import LockTimeoutError, status
from observatory.database.migration_session import MIGRATION_SETTINGS
from observatory.database.migrations.events import Event
from tests.database.conftest import Deploy, WriteMigrations


@pytest.fixture
def reader(
    conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection]:
    """A session that reads table `a` of migration 001 in an open transaction; 002 alters that table.

    The migration waits for the lock for as long as a busy machine needs to look at who holds it.
    """
    monkeypatch.setattr(
        "observatory.database.deployment.MIGRATION_SETTINGS", {**MIGRATION_SETTINGS, "lock_timeout": "5s"}
    )
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    run_deploy(migrations=directory)
    write_migrations(_002_b="SELECT 1;\nALTER TABLE a ADD b int;")
    with psycopg.connect(conninfo, application_name="reporting") as connection:
        connection.execute("SELECT count(*) FROM a")
        yield connection


def test_sessions_that_block_a_migration_are_named_and_the_file_is_rolled_back(
    conninfo: str, run_deploy: Deploy, write_migrations: WriteMigrations, reader: psycopg.Connection
) -> None:
    with pytest.raises(LockTimeoutError) as caught:
        run_deploy(migrations=write_migrations())

    message = str(caught.value)
    assert message.startswith("002_b.sql:2:1: canceling statement due to lock timeout")
    assert f"pid {reader.info.backend_pid} (user postgres, reporting, idle in transaction for " in message
    assert "SELECT count(*) FROM a" in message
    assert status(conninfo).version == 1


def test_a_blocked_migration_is_retried_until_its_lock_is_free(
    run_deploy: Deploy, write_migrations: WriteMigrations, reader: psycopg.Connection
) -> None:
    events: list[Event] = []

    def end_the_reader(event: Event) -> None:
        events.append(event)
        if event.kind == "retrying":
            reader.rollback()

    assert run_deploy(migrations=write_migrations(), retry=1, on_event=end_the_reader).applied == ("002_b",)
    assert [event.kind for event in events].count("retrying") == 1


def test_a_writer_queued_behind_a_migration_continues_after_the_lock_timeout(
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
