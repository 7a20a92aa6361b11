"""Connections: session names, long socket paths and readable errors."""

from datetime import datetime
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from observatory.database import UnreachableError, connect
from observatory.database.connection import MAX_SOCKET_PATH, SESSION_SETTINGS, describe, has_password
from observatory.database.errors import NoSuchDatabaseError, PasswordRefusedError
from tests.support.postgres import PostgresServer


def descriptors_of(directory: Path) -> list[str]:
    """Return the descriptors of a directory that are open; others of this process come and go with the garbage."""
    return [each.name for each in Path("/proc/self/fd").iterdir() if each.resolve() == directory.resolve()]


def setting(connection: psycopg.Connection, name: str) -> str:
    row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
    assert row
    return str(row[0])


def test_sessions_have_a_name_and_keep_their_settings_after_reset(postgres: PostgresServer) -> None:
    with connect(postgres.conninfo(), purpose="x" * 99, settings={"search_path": "a, b"}) as connection:
        connection.execute("SET search_path = elsewhere")
        connection.execute("RESET ALL")

        assert setting(connection, "application_name") == ("observatory:" + "x" * 99)[:63]
        assert setting(connection, "search_path") == "a, b"
        assert connection.autocommit


def test_a_socket_directory_may_exceed_the_limit_of_a_socket_path(postgres: PostgresServer, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * MAX_SOCKET_PATH)
    deep.symlink_to(postgres.socket_directory)
    conninfo = make_conninfo(host=str(deep), port=postgres.port, user="postgres", dbname="postgres")
    with pytest.raises(psycopg.OperationalError, match="too long"):
        psycopg.connect(conninfo)

    with connect(conninfo, purpose="test") as connection:
        assert setting(connection, "port") == str(postgres.port)
        assert len(descriptors_of(postgres.socket_directory)) == 1
    assert descriptors_of(postgres.socket_directory) == []


def test_a_deep_socket_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    missing = tmp_path / ("m" * MAX_SOCKET_PATH)

    with (
        pytest.raises(UnreachableError, match=r"The socket directory .* cannot be opened: No such file"),
        connect(f"host={missing} dbname=x", purpose="test"),
    ):
        pass


@pytest.mark.parametrize(
    ("conninfo", "message"),
    [
        ("host=127.0.0.1 port=1 user=u dbname=d", 'database "d" at 127.0.0.1:1 as "u".* Check that the server runs'),
        ("host=/nonexistent user=u dbname=d", "Check that the server runs"),
        ("host", "malformed"),
        ("host=127.0.0.1 password='hunter2", "malformed"),
    ],
)
def test_an_unreachable_server_is_a_readable_error(conninfo: str, message: str) -> None:
    with pytest.raises(UnreachableError, match=message) as caught, connect(conninfo, purpose="test"):
        pass

    assert "hunter2" not in str(caught.value)


def test_a_wrong_password_is_a_readable_error_without_the_password(postgres: PostgresServer) -> None:
    conninfo = postgres.tcp_conninfo(user="postgres", password="hunter2", dbname="postgres")

    with (
        pytest.raises(PasswordRefusedError, match=r"authentication failed.*Check the user and the password") as caught,
        connect(conninfo, purpose="test"),
    ):
        pass

    assert "hunter2" not in str(caught.value)


def test_a_database_that_is_gone_is_told_from_a_server_that_does_not_respond(postgres: PostgresServer) -> None:
    with pytest.raises(NoSuchDatabaseError, match="gone"), connect(postgres.conninfo(dbname="gone"), purpose="test"):
        pass
    with pytest.raises(UnreachableError) as caught, connect(postgres.conninfo(user="gone"), purpose="test"):
        pass
    assert type(caught.value) is UnreachableError  # a role of that name does not exist


def test_a_database_whose_removal_was_interrupted_is_gone(postgres: PostgresServer) -> None:
    with postgres.fresh_database() as name, postgres.superuser() as session:
        session.execute("UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s", [name])
        with pytest.raises(NoSuchDatabaseError), connect(postgres.conninfo(dbname=name), purpose="test"):
            pass


def test_a_connection_string_is_described_without_its_password() -> None:
    assert describe("postgresql://u:hunter2@h:6/d") == 'database "d" at h:6 as "u"'
    assert describe("postgresql://h:6") == "the default database at h:6"
    assert has_password("postgresql://u:hunter2@h:6/d")
    assert not has_password("host=/run user=u dbname=d")


def test_role_and_database_do_not_change_what_the_program_reads_and_sends(
    fresh_database: str, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these is set for a database by its users: a German date, names in quotes, a limit of idle sessions."""
    settings = {"datestyle": "German", "intervalstyle": "sql_standard", "quote_all_identifiers": "on"}
    settings |= {"standard_conforming_strings": "off", "statement_timeout": "1min", "idle_session_timeout": "1h"}
    with postgres.superuser() as admin:
        for name, value in settings.items():
            admin.execute(f"ALTER DATABASE {fresh_database} SET {name} = '{value}'".encode())
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")

    with connect(postgres.conninfo(dbname=fresh_database), purpose="deploy", settings={}) as connection:
        now, length = connection.execute("SELECT now(), length('grün')".encode()).fetchone() or (None, None)

        assert {name: setting(connection, name) for name in settings} == dict(SESSION_SETTINGS)
        assert (type(now), length) == (datetime, 4)
