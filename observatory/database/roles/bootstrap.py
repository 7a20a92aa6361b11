"""Brings a bare server to where roles and migrations can be deployed: the database, its owner, who makes logins.

Owns what needs a superuser. Does not own tables (migrations do) nor pg_hba.conf (the machine's files do).
Everything here may run again, at once from several places, and after a kill.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import psycopg
from psycopg import sql

from observatory.database.advisory_locks import BOOTSTRAP_LOCK, session_lock
from observatory.database.connection import connect, with_database
from observatory.database.error_translation import translate_errors
from observatory.database.roles.limits import Limits
from observatory.database.roles.role_settings import apply_role_settings

EXTENSIONS = ("timescaledb", "pg_stat_statements")
LOCK_WAIT_S = 60.0
AUDITOR, AUDIT_SCHEMA = "auditor", "audit"
GRANTABLE = ("pg_monitor", "pg_signal_backend", "pg_maintain")  # what logins may be members of
# Migrations and jobs take the time that they need; who waits for a lock blocks everybody behind it.
OWNER_LIMITS = Limits(connections=30, lock_timeout_s=30, idle_in_transaction_s=300)
PROVISIONER_LIMITS = Limits(connections=10, statement_timeout_s=30, lock_timeout_s=10, idle_in_transaction_s=30)

# PostgreSQL marks so a database whose CREATE or DROP was interrupted: it can only be dropped.
_INVALID_DATABASE = -2


def ensure_database(admin_conninfo: str, *, name: str, owner: str) -> None:
    """Make a database with its owner, schemas and extensions; no change where they are as they should be.

    The schema `audit` belongs to the role `auditor`, whom nobody can become but a superuser: what is in it stays.

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
        _limit(admin, owner, OWNER_LIMITS)
        admin.execute(_compose("GRANT pg_read_all_stats TO {}", owner))
        _ensure_role(admin, AUDITOR, login=False)
        _ensure_empty_database(admin, name, owner)
        with connect(with_database(admin_conninfo, name), purpose="bootstrap") as connection:
            _ensure_contents(connection, name, owner)


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
        _limit(admin, name, PROVISIONER_LIMITS)
        admin.execute(_compose("GRANT {} TO {}", owner, name))
        admin.execute(_compose("GRANT SET ON PARAMETER log_statement TO {}", name))
        # Without an option of its own to grant it on: what it grants is then the owner's grant, which REVOKE looks for.
        admin.execute(_compose("GRANT CONNECT ON DATABASE {} TO {}", database, name))
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
        translate_errors(place),
        session_lock(admin, BOOTSTRAP_LOCK, wait_s=LOCK_WAIT_S),
    ):
        yield admin


def _compose(statement: str, *names: str) -> sql.Composed:
    return sql.SQL(statement).format(*map(sql.Identifier, names))


def _ensure_role(connection: psycopg.Connection, name: str, *, login: bool = True) -> None:
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchone() is None:
        connection.execute(_compose("CREATE ROLE {}", name))
    attributes = "ALTER ROLE {} INHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS "
    connection.execute(_compose(attributes + ("LOGIN" if login else "NOLOGIN"), name))


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
    connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    connection.execute(_compose("CREATE SCHEMA IF NOT EXISTS observatory AUTHORIZATION {}", owner))
    connection.execute(_compose("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}", AUDIT_SCHEMA, AUDITOR))
    connection.execute(_compose("ALTER DATABASE {} SET timezone = 'UTC'", name))


def _ensure_pg_cron(connection: psycopg.Connection, name: str, owner: str) -> None:
    row = connection.execute("SELECT current_setting('cron.database_name', true)").fetchone()
    if row and row[0] == name:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_cron")
        connection.execute(_compose("GRANT USAGE ON SCHEMA cron TO {}", owner))


def _limit(connection: psycopg.Connection, name: str, limits: Limits) -> None:
    connection.execute(_compose("ALTER ROLE {} CONNECTION LIMIT ", name) + sql.Literal(limits.connections))
    apply_role_settings(connection, {name: limits.settings})
