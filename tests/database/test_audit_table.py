"""The audit table: entries are added once, and never changed or removed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import errors

from observatory.database import UnreachableError
from observatory.database.audit_table import AuditEntry, add_entries, read_entries
from tests.database.roles.conftest import Names, bootstrap, make_login, names  # noqa: F401 - a fixture
from tests.support.postgres import PostgresServer


def entry(number: int) -> AuditEntry:
    return AuditEntry(
        id=f"e{number}",
        at=1_700_000_000.25 + number,
        actor="me@here",
        event="shift",
        details={"weights": {"blue": 95, "green": 5}, "deployment": "d1"},
    )


@pytest.fixture
def database(postgres: PostgresServer, names: Names) -> str:  # noqa: F811 - the fixture
    bootstrap(postgres, names)
    return postgres.conninfo(dbname=names.database)


def test_entries_are_added_once_and_read_unchanged(database: str) -> None:
    assert read_entries(database) == []
    assert add_entries(database, [entry(2), entry(1)]) == 2
    assert add_entries(database, [entry(1), entry(2), entry(3)]) == 1
    assert read_entries(database) == [entry(1), entry(2), entry(3)]


def test_concurrent_commands_add_each_entry_once(database: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: add_entries(database, [entry(number) for number in range(20)]), range(4)))
    assert len(read_entries(database)) == 20


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit.entries SET actor = 'other'", "DELETE FROM audit.entries", "TRUNCATE audit.entries"],
)
def test_a_superuser_cannot_change_an_entry(database: str, statement: str) -> None:
    add_entries(database, [entry(1)])
    with psycopg.connect(database, autocommit=True) as admin:
        for role in ("postgres", "auditor"):
            admin.execute(f"SET ROLE {role}".encode())
            with pytest.raises(errors.InsufficientPrivilege, match="only added to"):
                admin.execute(statement.encode())
    assert read_entries(database) == [entry(1)]


def test_no_other_role_may_read_add_change_or_remove_entries(
    postgres: PostgresServer,
    names: Names,  # noqa: F811
    database: str,
) -> None:
    add_entries(database, [entry(1)])
    make_login(postgres, names)
    for user in (names.owner, names.provisioner, names.login):
        with psycopg.connect(postgres.conninfo(user=user, dbname=names.database), autocommit=True) as connection:
            for statement in (
                "SELECT FROM audit.entries",
                "INSERT INTO audit.entries (id, at, actor, event, details) VALUES ('x', now(), 'x', 'x', '{}')",
                "UPDATE audit.entries SET actor = 'other'",
                "DELETE FROM audit.entries",
                "TRUNCATE audit.entries",
                "DROP TABLE audit.entries",
                "ALTER TABLE audit.entries DISABLE TRIGGER only_added_to",
                "DROP TRIGGER only_added_to ON audit.entries",
                "DROP FUNCTION audit.refuse_change CASCADE",
            ):
                with pytest.raises(errors.InsufficientPrivilege):
                    connection.execute(statement.encode())


def test_a_database_that_is_down_is_a_readable_error(database: str) -> None:
    with pytest.raises(UnreachableError):
        add_entries("host=127.0.0.1 port=1 user=postgres dbname=observatory", [entry(1)])
