"""Prepares a new server for roles and migrations: the database, its owner, and the login that creates other logins.

Owns everything that needs a superuser, but not tables (migrations) or pg_hba.conf (files of the machine). Each
function may run repeatedly, concurrently, and after a kill.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import psycopg
from psycopg import sql

from observatory.database.advisory_locks import BOOTSTRAP_LOCK, session_lock
from observatory.database.connection import connect, with_database
from observatory.database.error_translation import translate_errors
from observatory.database.migration_backup import Backup
from observatory.database.roles.audit_schema import AUDIT_SCHEMA, AUDITOR, ensure_audit
from observatory.database.roles.extension_updates import update_extensions
from observatory.database.roles.role_settings import apply_role_settings
from observatory.documents.login_limits import Limits

EXTENSIONS = ("timescaledb", "pg_stat_statements")
LOCK_WAIT_S = 60.0
GRANTABLE = ("pg_monitor", "pg_signal_backend", "pg_maintain")  # roles that logins may be members of
# Migrations and jobs have no statement timeout. A lock timeout, because a waiting session blocks all behind it.
OWNER_LIMITS = Limits(connections=30, lock_timeout_s=30, idle_in_transaction_s=300)
PROVISIONER_LIMITS = Limits(connections=10, statement_timeout_s=30, lock_timeout_s=10, idle_in_transaction_s=30)

# Databases of every server that no login needs; PostgreSQL lets every login connect to them.
OTHER_DATABASES = ("postgres", "template1")
# What PUBLIC may call in a new database, and must not here: large objects and WAL messages fill the disk, an advisory
# lock stops deployments, and a job of TimescaleDB runs without a session.
_FILLS_DISK = r"^(lo_.+|loread|lowrite|pg_logical_emit_message)$"
_FOR_OWNER = r"^(pg_(try_)?advisory_.+|add_job)$"
_FUNCTIONS = """
    SELECT p.oid::regprocedure::text FROM pg_proc p
    WHERE p.pronamespace IN ('pg_catalog'::regnamespace, 'public'::regnamespace) AND p.proname ~ %s
      AND (SELECT bool_or(grantee = 0) FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))))
    ORDER BY 1
"""
# Statements that an earlier version recorded with a password's verifier.
_FORGET_PASSWORDS = """
    SELECT count(pg_stat_statements_reset(userid, dbid, queryid)) FROM pg_stat_statements WHERE query ILIKE '%password%'
"""

# PostgreSQL sets this for a database whose CREATE or DROP was interrupted; such a database can only be dropped.
_INVALID_DATABASE = -2


def ensure_database(
    admin_conninfo: str,
    *,
    name: str,
    owner: str,
    backup: Backup | None = None,
    report: Callable[[str], None] = lambda _detail: None,
) -> None:
    """Create a database with its owner, schemas and extensions; changes nothing that is already correct.

    The schema `audit` belongs to the role `auditor`, which only a superuser can assume, so its contents are protected.

    Extensions of an existing database are updated to the versions that the server's files provide.

    A server can have pg_cron in one database only: it is created if the server's `cron.database_name` is this one.

    The owner is a login without a password; it uses peer authentication on the socket. It may read other sessions'
    queries, so that a migration can name the sessions that block it.

    Other logins cannot connect to the server's own databases, and cannot create large objects or take advisory locks.
    Errors of sessions in the database are not logged: their messages quote values.

    Args:
        admin_conninfo: to the server's maintenance database (`postgres`), as superuser; the lock is taken there.
        name: of the database; UTF-8 with PostgreSQL's own C.UTF-8, so that no library update reorders its indexes.
        owner: role that owns the database and all objects of the migrations.
        backup: makes a backup before an extension of an existing database is updated; None: no backup is made.
        report: called with the progress of such an update.

    Raises:
        LockHeldError: another bootstrap of the server is running.
        BackupFailedError: the backup before an update of an extension failed; no extension was changed.
        StatementFailedError: PostgreSQL rejected a statement, for example because an extension is not installed.
        UnsuitableServerError: the server's files of TimescaleDB do not fit the version in the database.
        UnreachableError: the connection failed.
    """
    with _locked_session(admin_conninfo, f'bootstrap of database "{name}"') as admin:
        _ensure_role(admin, owner)
        _limit(admin, owner, OWNER_LIMITS)
        admin.execute(_compose("GRANT pg_read_all_stats TO {}", owner))
        _ensure_role(admin, AUDITOR, login=False)
        _ensure_empty_database(admin, name, owner)
        for other in OTHER_DATABASES:
            admin.execute(_compose("REVOKE ALL ON DATABASE {} FROM PUBLIC", other))
        update_extensions(with_database(admin_conninfo, name), backup=backup, report=report)
        with connect(with_database(admin_conninfo, name), purpose="bootstrap") as connection:
            _ensure_contents(connection, name, owner)


def ensure_provisioner(
    admin_conninfo: str, *, database: str, owner: str, name: str, verifier: str, managed: Sequence[str]
) -> None:
    """Create the provisioner, a login that creates all other logins. It is not a superuser.

    It may create roles and grant the privileges of the owner.

    Args:
        admin_conninfo: to the server's maintenance database (`postgres`), as superuser; the lock is taken there.
        database: created by `ensure_database`.
        owner: of the database and its objects; the provisioner becomes a member.
        name: of the provisioner.
        verifier: of its password, from `scram_verifier`.
        managed: roles that it manages; it becomes administrator of those that already exist.

    Raises:
        LockHeldError: another bootstrap of the server is running.
        StatementFailedError: PostgreSQL rejected a statement.
        UnreachableError: the connection failed.
    """
    with _locked_session(admin_conninfo, f'bootstrap of login "{name}"') as admin, admin.transaction():
        _ensure_role(admin, name)
        admin.execute(_compose("ALTER ROLE {} CREATEROLE", name))
        _set_password(admin, name, verifier)
        _limit(admin, name, PROVISIONER_LIMITS)
        # It sets passwords, which must not be logged whatever its client is; a client that can separates the two.
        apply_role_settings(admin, {name: {"log_statement": "none"}})
        admin.execute(_compose("GRANT {} TO {}", owner, name))
        admin.execute(_compose("GRANT SET ON PARAMETER log_statement TO {}", name))
        # Without grant option: its grants then count as the owner's, which is where REVOKE expects them.
        admin.execute(_compose("GRANT CONNECT ON DATABASE {} TO {}", database, name))
        existing = admin.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY (%s)", [list(managed)]).fetchall()
        for role in (*GRANTABLE, *(row[0] for row in existing)):
            admin.execute(_compose("GRANT {} TO {} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE", role, name))


def _set_password(admin: psycopg.Connection, name: str, verifier: str) -> None:
    """Set a password without logging the statement, in the open transaction."""
    admin.execute("SET LOCAL log_statement = 'none'")
    admin.execute(_compose("ALTER ROLE {} PASSWORD ", name) + sql.Literal(verifier))
    admin.execute("SET LOCAL log_statement TO DEFAULT")


def has_verifier(admin_conninfo: str, *, name: str, verifier: str) -> bool:
    """Return whether a login's password is the one of the verifier.

    Args:
        admin_conninfo: as superuser.
        name: of the login.
        verifier: the one that was set as the password.

    Raises:
        UnreachableError: the connection failed.
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
    ensure_audit(connection, owner=owner)
    connection.execute(_compose("ALTER DATABASE {} SET timezone = 'UTC'", name))
    connection.execute(_compose("ALTER DATABASE {} SET log_min_messages = 'log'", name))  # not ERROR, WARNING, NOTICE
    _ensure_functions(connection, owner)
    connection.execute(_FORGET_PASSWORDS)


def _ensure_functions(connection: psycopg.Connection, owner: str) -> None:
    """Revoke the functions above from PUBLIC, and grant the owner those that deployments need."""
    for pattern, grant in ((_FILLS_DISK, False), (_FOR_OWNER, True)):
        for (signature,) in connection.execute(_FUNCTIONS, [pattern]).fetchall():
            function = sql.SQL(signature)  # from the catalogue, quoted there
            if grant:
                statement = sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(function, sql.Identifier(owner))
                connection.execute(statement)
            connection.execute(sql.SQL("REVOKE EXECUTE ON FUNCTION {} FROM PUBLIC").format(function))


def _ensure_pg_cron(connection: psycopg.Connection, name: str, owner: str) -> None:
    row = connection.execute("SELECT current_setting('cron.database_name', true)").fetchone()
    if row and row[0] == name:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_cron")
        # pg_cron numbers each run; by default each 32nd number is a commit in the WAL, also of an idle stack.
        connection.execute("ALTER SEQUENCE cron.runid_seq CACHE 10000")
        connection.execute(_compose("GRANT USAGE ON SCHEMA cron TO {}", owner))


def _limit(connection: psycopg.Connection, name: str, limits: Limits) -> None:
    connection.execute(_compose("ALTER ROLE {} CONNECTION LIMIT ", name) + sql.Literal(limits.connections))
    apply_role_settings(connection, {name: limits.settings})
