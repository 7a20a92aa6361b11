"""SQL that several resource types use."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from observatory.engines.embedded.provider import ProviderError
from observatory.engines.providers.postgresql.resource_type import Inputs

PUBLIC = "public"
_SET_LOG_STATEMENT = """
    SELECT set_config('log_statement', %s, true) WHERE has_parameter_privilege('log_statement', 'SET')
"""


def log_changes(connection: psycopg.Connection) -> None:
    """Log the transaction's changes of objects and roles, if the login may: its own setting may be `none`."""
    connection.execute(_SET_LOG_STATEMENT, ["ddl"])


@contextmanager
def unlogged(connection: psycopg.Connection) -> Iterator[None]:
    """Keep the block's statements, which have passwords, out of the server's log, if the login may."""
    connection.execute(_SET_LOG_STATEMENT, ["none"])
    yield
    log_changes(connection)


def compose(statement: str, *names: str) -> sql.Composed:
    """Return the statement with each `{}` replaced by a quoted name."""
    return sql.SQL(statement).format(*map(sql.Identifier, names))


def privileges(inputs: Inputs) -> sql.Composed:
    """Return the privileges as SQL.

    Raises:
        ProviderError: one of them contains something else than letters.
    """
    if invalid := [word for word in inputs["privileges"] if not str(word).isalpha()]:
        raise ProviderError(f"privileges: {invalid[0]!r} is not a privilege; use PostgreSQL's names, such as SELECT")
    return sql.SQL(", ").join(map(sql.SQL, inputs["privileges"]))


def grantee(inputs: Inputs) -> sql.Composable:
    """Return the role that gets the privileges; `public` is PostgreSQL's PUBLIC."""
    return sql.SQL("PUBLIC") if inputs["role"] == PUBLIC else sql.Identifier(inputs["role"])


def grant_option(inputs: Inputs) -> sql.SQL:
    """Return the end of a GRANT statement."""
    return sql.SQL(" WITH GRANT OPTION" if inputs.get("withGrantOption") else "")


def role_exists(connection: psycopg.Connection, name: str) -> bool:
    """Return whether the role exists; PUBLIC always does."""
    return name == PUBLIC or role_oid(connection, name) is not None


def role_oid(connection: psycopg.Connection, name: str) -> int | None:
    """Return a role's oid, 0 for PUBLIC."""
    if name == PUBLIC:
        return 0
    row = connection.execute("SELECT oid FROM pg_roles WHERE rolname = %s", [name]).fetchone()
    return int(row[0]) if row else None


def in_id_order(values: list[str]) -> list[str]:
    """Return a set's members in the order that an ID has them: by the digits of their CRC-32, as in Terraform."""
    return sorted(set(values), key=lambda value: str(zlib.crc32(value.encode())))
