"""Brings a bare server to where migrations can run: roles, the database, its extensions, logins.

Owns what needs a superuser. Does not own tables (migrations do) nor pg_hba.conf (the machine's files do).
Everything here may run again, at once from several places, and after a kill.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
from collections.abc import Iterator, Sequence

import psycopg
from psycopg import sql

from observatory.database.connection import connect, with_database
from observatory.database.errors import readable
from observatory.database.limits import Limits, apply_role_settings
from observatory.database.lock import BOOTSTRAP_LOCK, session_lock
from observatory.database.privileges import SCHEMAS, grant_relations

EXTENSIONS = ("timescaledb", "pg_stat_statements")
LOCK_WAIT_S = 60.0
GRANTABLE = ("pg_monitor", "pg_read_all_data", "pg_signal_backend", "pg_maintain")  # what logins may be members of
PROVISIONER_LIMITS = Limits(connections=10, statement_timeout_s=30, lock_timeout_s=10, idle_in_transaction_s=30)
MONITOR_CONNECTIONS, MONITOR_STATEMENT_TIMEOUT_MS = 5, 10_000

# PostgreSQL marks so a database whose CREATE or DROP was interrupted: it can only be dropped.
_INVALID_DATABASE = -2


def ensure_database(admin_conninfo: str, *, name: str, owner: str) -> None:
    """Make a database with its owner and extensions; no change where they are as they should be.

    pg_cron can be in one database of a server only: it is made where the server's `cron.database_name` is this one.

    The owner is a login without a password: it comes in by peer on the socket. It may see other sessions' queries, so
    that a migration can name who blocks it.

    Args:
        admin_conninfo: superuser, to the server's maintenance database (`postgres`), which holds the lock.
        name: the database; UTF-8 with PostgreSQL's own C.UTF-8, so no library update can reorder its indexes.
        owner: role that owns the database and everything that migrations create.

    Raises:
        LockHeldError: another bootstrap runs on the server.
        StatementFailedError: PostgreSQL refused, for example because an extension is not installed.
        UnreachableError: no connection.
    """
    with _locked_session(admin_conninfo, f'bootstrap of database "{name}"') as admin:
        _ensure_role(admin, owner)
        admin.execute(_compose("GRANT pg_read_all_stats TO {}", owner))
        _ensure_empty_database(admin, name, owner)
        with connect(with_database(admin_conninfo, name), purpose="bootstrap") as connection:
            _ensure_contents(connection, name, owner)


def ensure_login(
    admin_conninfo: str,
    *,
    database: str,
    name: str,
    password: str,
    owner: str,
    connection_limit: int = 100,
    statement_timeout_ms: int = 30_000,
) -> None:
    """Make a login of an application, without any right to create or change objects.

    It may read all that the owner has or will have, write what `grant_access` says once that ran after the migration
    that makes the table, and use temporary tables (COPY, then INSERT … ON CONFLICT, needs one). The password
    leaves this process only as a SCRAM verifier.

    Args:
        admin_conninfo: superuser, to the server's maintenance database (`postgres`), which holds the lock.
        database: made by `ensure_database`.
        name: of the login.
        password: in plain text; unchanged where the server's verifier fits it.
        owner: of the tables.
        connection_limit: sessions of this login.
        statement_timeout_ms: of each of its statements.

    Raises:
        LockHeldError: another bootstrap runs on the server.
        StatementFailedError: PostgreSQL refused.
        UnreachableError: no connection.
    """
    inside = with_database(admin_conninfo, database)
    with (
        _locked_session(admin_conninfo, f'bootstrap of login "{name}"'),
        connect(inside, purpose="bootstrap") as connection,
        connection.transaction(),
    ):
        _ensure_role(connection, name)
        _ensure_password(connection, name, password)
        _limit(connection, name, database, connection_limit, statement_timeout_ms)
        _grant(connection, name, database, owner)


def ensure_monitor(admin_conninfo: str, *, database: str, name: str) -> None:
    """Make the login of an exporter, which comes in by peer on the socket: it reads statistics, no data.

    Args:
        admin_conninfo: superuser, to the server's maintenance database (`postgres`), which holds the lock.
        database: made by `ensure_database`.
        name: of the login.

    Raises:
        LockHeldError: another bootstrap runs on the server.
        StatementFailedError: PostgreSQL refused.
        UnreachableError: no connection.
    """
    with _locked_session(admin_conninfo, f'bootstrap of login "{name}"') as admin:
        _ensure_role(admin, name)
        admin.execute(_compose("GRANT pg_monitor TO {}", name))
        admin.execute(_compose("GRANT CONNECT ON DATABASE {} TO {}", database, name))
        _limit(admin, name, database, MONITOR_CONNECTIONS, MONITOR_STATEMENT_TIMEOUT_MS)


def ensure_provisioner(
    admin_conninfo: str, *, database: str, owner: str, name: str, verifier: str, managed: Sequence[str]
) -> None:
    """Make the login that makes all others: it may create roles and grant what the owner has, and is no superuser.

    Args:
        admin_conninfo: superuser, to the server's maintenance database (`postgres`), which holds the lock.
        database: made by `ensure_database`.
        owner: of the database and its objects; the login becomes a member.
        name: of the login.
        verifier: of its password, as `scram_verifier` returns it.
        managed: roles that it is to manage; those that stand already, made by somebody else, are handed over.

    Raises:
        LockHeldError: another bootstrap runs on the server.
        StatementFailedError: PostgreSQL refused.
        UnreachableError: no connection.
    """
    with _locked_session(admin_conninfo, f'bootstrap of login "{name}"') as admin, admin.transaction():
        _ensure_role(admin, name)
        admin.execute(_compose("ALTER ROLE {} CREATEROLE PASSWORD ", name) + sql.Literal(verifier))
        _apply_limits(admin, name, PROVISIONER_LIMITS)
        admin.execute(_compose("GRANT {} TO {}", owner, name))
        admin.execute(_compose("GRANT SET ON PARAMETER log_statement TO {}", name))
        admin.execute(_compose("GRANT CONNECT ON DATABASE {} TO {} WITH GRANT OPTION", database, name))
        standing = admin.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY (%s)", [list(managed)]).fetchall()
        for role in (*GRANTABLE, *(row[0] for row in standing)):
            admin.execute(_compose("GRANT {} TO {} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE", role, name))


def has_verifier(admin_conninfo: str, *, name: str, verifier: str) -> bool:
    """Tell whether a login's password is the one that the verifier was made of.

    Args:
        admin_conninfo: superuser.
        name: of the login.
        verifier: as `scram_verifier` returned it when the password was set.

    Raises:
        UnreachableError: no connection.
    """
    with connect(admin_conninfo, purpose="verify passwords") as admin:
        row = admin.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", [name]).fetchone()
    return row == (verifier,)


@contextlib.contextmanager
def _locked_session(admin_conninfo: str, place: str) -> Iterator[psycopg.Connection]:
    with (
        connect(admin_conninfo, purpose="bootstrap") as admin,
        readable(place),
        session_lock(admin, BOOTSTRAP_LOCK, wait_s=LOCK_WAIT_S),
    ):
        yield admin


def _compose(statement: str, *names: str) -> sql.Composed:
    return sql.SQL(statement).format(*map(sql.Identifier, names))


def _ensure_role(connection: psycopg.Connection, name: str) -> None:
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchone() is None:
        connection.execute(_compose("CREATE ROLE {}", name))
    attributes = "ALTER ROLE {} LOGIN INHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
    connection.execute(_compose(attributes, name))


def _ensure_empty_database(admin: psycopg.Connection, name: str, owner: str) -> None:
    row = admin.execute("SELECT datconnlimit FROM pg_database WHERE datname = %s", [name]).fetchone()
    if row and row[0] == _INVALID_DATABASE:
        admin.execute(_compose("DROP DATABASE {}", name))
        row = None
    if row is None:
        locale = "ENCODING 'UTF8' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LC_COLLATE 'C' LC_CTYPE 'C'"
        admin.execute(_compose("CREATE DATABASE {} OWNER {} TEMPLATE template0 " + locale, name, owner))
    admin.execute(_compose("ALTER DATABASE {} OWNER TO {}", name, owner))
    admin.execute(_compose("REVOKE ALL ON DATABASE {} FROM PUBLIC", name))


def _ensure_contents(connection: psycopg.Connection, name: str, owner: str) -> None:
    connection.execute("SET client_min_messages = warning")
    for extension in EXTENSIONS:
        # One statement per session: TimescaleDB must be the first thing that happens in the session that creates it.
        connection.execute(_compose("CREATE EXTENSION IF NOT EXISTS {}", extension))
    _ensure_pg_cron(connection, name, owner)
    connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    connection.execute(_compose("CREATE SCHEMA IF NOT EXISTS observatory AUTHORIZATION {}", owner))
    connection.execute(_compose("ALTER DATABASE {} SET timezone = 'UTC'", name))


def _ensure_pg_cron(connection: psycopg.Connection, name: str, owner: str) -> None:
    row = connection.execute("SELECT current_setting('cron.database_name', true)").fetchone()
    if row and row[0] == name:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_cron")
        connection.execute(_compose("GRANT USAGE ON SCHEMA cron TO {}", owner))


def _ensure_password(connection: psycopg.Connection, name: str, password: str) -> None:
    row = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", [name]).fetchone()
    if row and row[0] and _verifies(row[0], password):
        return
    verifier = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
    connection.execute(_compose("ALTER ROLE {} PASSWORD ", name) + sql.Literal(verifier))


def _verifies(verifier: str, password: str) -> bool:
    """Whether a SCRAM-SHA-256 verifier as PostgreSQL stores it was made from the password (RFC 5802, section 3)."""
    scheme, _, rest = verifier.partition("$")
    if scheme != "SCRAM-SHA-256":
        return False
    iterations, salt = rest.partition("$")[0].split(":")
    stored_key = rest.partition("$")[2].partition(":")[0]
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(iterations))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return hmac.compare_digest(hashlib.sha256(client_key).digest(), base64.b64decode(stored_key))


def _limit(
    connection: psycopg.Connection, name: str, database: str, connections: int, statement_timeout_ms: int
) -> None:
    connection.execute(_compose("ALTER ROLE {} CONNECTION LIMIT ", name) + sql.Literal(connections))
    limits = {
        "statement_timeout": statement_timeout_ms,
        "lock_timeout": statement_timeout_ms // 3,
        "idle_in_transaction_session_timeout": statement_timeout_ms,
    }
    for setting, value in limits.items():
        alter = _compose("ALTER ROLE {} IN DATABASE {} SET {} = ", name, database, setting)
        connection.execute(alter + sql.Literal(value))


def _grant(connection: psycopg.Connection, name: str, database: str, owner: str) -> None:
    connection.execute(_compose("GRANT CONNECT, TEMPORARY ON DATABASE {} TO {}", database, name))
    for schema in SCHEMAS:
        connection.execute(_compose("GRANT USAGE ON SCHEMA {} TO {}", schema, name))
        future = _compose("ALTER DEFAULT PRIVILEGES FOR ROLE {} IN SCHEMA {} ", owner, schema)
        connection.execute(future + _compose("REVOKE ALL ON TABLES FROM {}", name))
        connection.execute(future + _compose("GRANT SELECT ON TABLES TO {}", name))
    grant_relations(connection, role=name, owner=owner)


def _apply_limits(connection: psycopg.Connection, name: str, limits: Limits) -> None:
    connection.execute(_compose("ALTER ROLE {} CONNECTION LIMIT ", name) + sql.Literal(limits.connections))
    apply_role_settings(connection, {name: limits.settings})
