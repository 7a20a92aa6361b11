"""A verification does not wait for ever for a lock: it ends with the sessions that hold it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from observatory.database import verification_session
from observatory.database.errors import RowsLockedError
from observatory.database.verification_rows import MarkedRows
from observatory.database.verification_session import verification_rows
from tests.support.postgres import PostgresServer
from tests.support.waiting import until

TABLES = """
CREATE TABLE llm_traces (ts timestamptz, trace_id text, provider text, model text, environment text);
CREATE TABLE llm_metrics (ts timestamptz, metric_name text, provider text, model text, user_id text);
CREATE TABLE llm_logs (ts timestamptz, trace_id text, log_level text, provider text);
CREATE TABLE api_keys (name text, key_hash text, expires_at timestamptz);
"""
VERSION = "storage-service green v0.2.0"


@pytest.fixture
def database(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(verification_session, "TIMEOUTS", {"lock_timeout": "100ms", "statement_timeout": "30s"})
    with postgres.fresh_database(extensions=False) as name:
        with closing(postgres.superuser(name)) as session:
            session.execute(TABLES)
        yield postgres.conninfo(dbname=name)


@pytest.fixture
def version(database: str) -> Iterator[psycopg.Connection]:
    """A session of the version that is verified, in a transaction that does not end."""
    with closing(psycopg.connect(database, application_name=VERSION)) as session:
        yield session


def locked(database: str) -> RowsLockedError:
    with pytest.raises(RowsLockedError) as caught, verification_rows(database):
        pass
    return caught.value


@pytest.mark.parametrize("table", ["llm_traces", "api_keys"])
def test_a_lock_that_is_held_for_ever_ends_the_verification_with_its_holder(
    database: str, version: psycopg.Connection, table: str
) -> None:
    version.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
    error = locked(database)
    assert error.applications == {VERSION}
    assert f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE" in str(error)
    version.rollback()
    with verification_rows(database) as rows:
        assert rows.count("llm_traces") == 0


def test_a_session_with_locks_on_many_tables_is_named_once(database: str, version: psycopg.Connection) -> None:
    version.execute("LOCK TABLE llm_traces, llm_metrics, llm_logs, api_keys IN ACCESS EXCLUSIVE MODE")
    assert str(locked(database)).count(f"pid {version.info.backend_pid} ") == 1


def test_a_lock_on_one_row_has_a_holder_too(database: str, version: psycopg.Connection) -> None:
    def store(rows: MarkedRows) -> None:
        rows.owner.execute("INSERT INTO llm_logs VALUES (now(), %s, 'DEBUG', %s)", [rows.run, rows.mark])
        version.execute("UPDATE llm_logs SET ts = ts")

    with pytest.raises(RowsLockedError) as caught, verification_rows(database) as rows:
        store(rows)
    assert caught.value.applications == {VERSION}


def test_what_waits_for_the_same_lock_is_no_holder_of_it(database: str, version: psycopg.Connection) -> None:
    with closing(psycopg.connect(database, application_name="psql")) as operator:
        operator.execute("LOCK TABLE llm_traces IN ACCESS EXCLUSIVE MODE")
        version.execute("INSERT INTO llm_logs VALUES (now())")
        version.pgconn.send_query(b"SELECT FROM llm_traces")
        waits = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        until(lambda: operator.execute(waits, [version.info.backend_pid]).fetchone() is not None, "the version to wait")
        assert locked(database).applications == {"psql"}
        operator.rollback()


def test_readers_and_other_databases_are_no_holders(
    database: str, version: psycopg.Connection, postgres: PostgresServer
) -> None:
    version.execute("LOCK TABLE llm_traces IN ACCESS EXCLUSIVE MODE")
    with closing(psycopg.connect(database)) as reader, closing(psycopg.connect(postgres.conninfo())) as elsewhere:
        reader.execute("SELECT FROM llm_logs")
        elsewhere.execute("CREATE TABLE mine ()")
        assert locked(database).applications == {VERSION}
