"""A new database with its roles for each test."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql

from observatory.database import (
    deploy,
    ensure_database,
    ensure_provisioner,
    grant_access,
    scram_verifier,
)
from tests.database.conftest import SHIPPED
from tests.support.postgres import PostgresServer

PASSWORD = "correct horse"


@dataclass(frozen=True, kw_only=True)
class Names:
    database: str
    owner: str
    login: str
    provisioner: str


@pytest.fixture
def names(postgres: PostgresServer) -> Iterator[Names]:
    """Names that nothing has yet on the server; what the test makes under them is removed."""
    suffix = secrets.token_hex(4)
    names = Names(
        database=f"boot_{suffix}",
        owner=f"owner_{suffix}",
        login=f"login_{suffix}",
        provisioner=f"provisioner_{suffix}",
    )
    yield names
    postgres.drop_database(names.database)
    with postgres.superuser() as admin:
        if admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [names.provisioner]).fetchone() is not None:
            revoke = sql.SQL("REVOKE SET ON PARAMETER log_statement FROM {}")
            admin.execute(revoke.format(sql.Identifier(names.provisioner)))
        for role in (names.provisioner, names.login, names.owner):
            admin.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


VERIFIER = scram_verifier(PASSWORD)


def bootstrap(postgres: PostgresServer, names: Names, *, verifier: str = VERIFIER) -> None:
    ensure_database(postgres.conninfo(), name=names.database, owner=names.owner)
    ensure_provisioner(
        postgres.conninfo(),
        database=names.database,
        owner=names.owner,
        name=names.provisioner,
        verifier=verifier,
        managed=[names.login],
    )


def make_login(postgres: PostgresServer, names: Names) -> None:
    """As the provisioner, which is all that `components.access` has."""
    with as_login(postgres, names, user=names.provisioner) as connection:
        for statement in (
            f"CREATE ROLE {names.login} LOGIN PASSWORD '{VERIFIER}'",
            f"GRANT CONNECT, TEMPORARY ON DATABASE {names.database} TO {names.login}",
            f"GRANT USAGE ON SCHEMA public, observatory TO {names.login}",
            f"ALTER ROLE {names.login} SET log_statement = 'none'",
        ):
            connection.execute(statement.encode())


def migrate(postgres: PostgresServer, names: Names) -> None:
    conninfo = postgres.conninfo(user=names.owner, dbname=names.database)
    deploy(conninfo, migrations=SHIPPED, actor="tester", deployment_id="test")


def give_access(postgres: PostgresServer, names: Names) -> None:
    grant_access(postgres.conninfo(user=names.owner, dbname=names.database), roles={names.login: "service"})


def as_login(
    postgres: PostgresServer, names: Names, *, user: str | None = None, password: str = PASSWORD
) -> psycopg.Connection:
    conninfo = postgres.tcp_conninfo(user=user or names.login, password=password, dbname=names.database)
    return psycopg.connect(conninfo, autocommit=True)


def one(connection: psycopg.Connection, query: str) -> tuple[object, ...]:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row
