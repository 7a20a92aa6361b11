"""What a throwaway server takes over from the database whose migrations are rehearsed, besides its schema.

Owns reading it and making it on another server: the names of database and owner, roles and their memberships,
extensions, and settings that decide how statements run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import psycopg
from psycopg import sql

from observatory.database.connection import connect, with_database
from observatory.database.error_translation import translate_errors
from observatory.database.errors import StatementFailedError
from observatory.database.migrations import ledger
from observatory.database.migrations.repeatable import StandingFile, standing_files
from observatory.database.roles.bootstrap import ensure_database

FORMAT = 2  # of the kept data; raise it when `make` or `read_objects` changes
OWNER = "migrator"  # where the planning role is a superuser, who owns no schema in a stack
PRELOADED = ("timescaledb", "pg_stat_statements", "pg_cron")
_SETTINGS = (
    *("max_locks_per_transaction", "max_prepared_transactions", "default_toast_compression"),
    *("default_table_access_method", "backslash_quote", "array_nulls", "transform_null_equals"),
)

_NAMES = "SELECT current_database(), current_user, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)"
_ROLES = "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1"
_MEMBERS = """
    SELECT g.rolname, m.rolname, bool_or(a.inherit_option), bool_or(a.set_option)
    FROM pg_auth_members a JOIN pg_roles g ON g.oid = a.roleid JOIN pg_roles m ON m.oid = a.member
    WHERE m.rolname !~ '^pg_' GROUP BY 1, 2 ORDER BY 1, 2
"""
_EXTENSIONS = "SELECT extname, extversion FROM pg_extension ORDER BY 1"
_CURRENT = "SELECT name, setting FROM pg_settings WHERE name = ANY (%s) ORDER BY 1"
# Of the database, and of its owner in it.
_STORED_SETTINGS = """
    SELECT setrole <> 0, unnest(setconfig) FROM pg_db_role_setting
    WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND setrole IN (0, quote_ident(current_user)::regrole) ORDER BY 1, 2
"""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A database, as `read_origin` found it.

    Attributes:
        name: of the database.
        owner: the role that owns its schema.
        has_own_owner: the planning role owns it; a superuser is replaced by another role.
        roles: of its server.
        members: group, member, whether it inherits the group's privileges, and whether it may become the group.
        extensions: names and versions.
        settings: of its server.
        stored_settings: of the database, and (True) of its owner in it.
        applied: name and SHA-256 of each applied file.
        repeatable: repeatable migrations whose objects it has.
    """

    name: str
    owner: str
    has_own_owner: bool
    roles: tuple[str, ...]
    members: tuple[tuple[str, str, bool, bool], ...]
    extensions: tuple[tuple[str, str], ...]
    settings: tuple[tuple[str, str], ...]
    stored_settings: tuple[tuple[bool, str], ...]
    applied: tuple[tuple[str, str], ...]
    repeatable: tuple[StandingFile, ...] = ()

    def key(self, version: str, edition: str, applied: Collection[tuple[str, str]]) -> str:
        """Return the digest of what a server has that was made from this, with these files applied."""
        own = (self.name, self.owner, self.roles, self.members, self.extensions, self.settings, self.stored_settings)
        inputs = [FORMAT, version, edition, own, sorted(applied)]
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]

    def server_settings(self, libraries: Collection[str]) -> dict[str, str]:
        """Return the settings of a server that has these libraries."""
        settings = {**dict(self.settings), "cron.database_name": self.name, "cron.launch_active_jobs": "off"}
        return settings | {"shared_preload_libraries": ",".join(name for name in PRELOADED if name in libraries)}


def read_origin(connection: psycopg.Connection) -> Origin:
    """Return what a throwaway server takes over from this database.

    Raises:
        psycopg.Error: PostgreSQL rejected a query.
    """
    name, user, is_superuser = connection.execute(_NAMES).fetchone() or ("", "", False)
    return Origin(
        name=name,
        owner=OWNER if is_superuser else user,
        has_own_owner=not is_superuser,
        roles=tuple(row[0] for row in connection.execute(_ROLES).fetchall()),
        members=tuple(connection.execute(_MEMBERS).fetchall()),
        extensions=tuple(connection.execute(_EXTENSIONS).fetchall()),
        settings=tuple(connection.execute(_CURRENT, [list(_SETTINGS)]).fetchall()),
        stored_settings=tuple(connection.execute(_STORED_SETTINGS).fetchall()),
        applied=tuple((each.stem, each.sha256) for each in ledger.read(connection) if each.complete),
        repeatable=standing_files(connection),
    )


def make(origin: Origin, admin: str) -> None:
    """Make database, owner, roles, extensions and settings on an empty server.

    An extension that is not installed there is left out; see `differing_extensions`.

    Raises:
        DatabaseError: a statement failed, or the connection broke.
    """
    ensure_database(admin, name=origin.name, owner=origin.owner)
    with connect(admin, purpose="rehearsal") as connection, translate_errors("roles of the rehearsal"):
        existing = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles")}
        for role in sorted(set(origin.roles) - existing):
            connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        for group, member, inherits, becomes in origin.members:
            grant = sql.SQL("GRANT {} TO {} WITH INHERIT {}, SET {}")
            options = (sql.SQL(str(inherits).upper()), sql.SQL(str(becomes).upper()))
            connection.execute(grant.format(sql.Identifier(group), sql.Identifier(member), *options))
        _store_settings(connection, origin)
    for name, version in origin.extensions:
        _ensure_extension(with_database(admin, origin.name), name, version)


def _store_settings(connection: psycopg.Connection, origin: Origin) -> None:
    database = sql.Identifier(origin.name)
    of_database = sql.SQL("DATABASE {}").format(database)
    of_owner = sql.SQL("ROLE {} IN DATABASE {}").format(sql.Identifier(origin.owner), database)
    for of_role, stored in origin.stored_settings:
        name, _, value = stored.partition("=")
        with connection.transaction():  # FROM CURRENT, because a literal would make one name of a list
            connection.execute("SELECT set_config(%s, %s, true)", [name, value])
            store = sql.SQL("ALTER {} SET {} FROM CURRENT")
            connection.execute(store.format(of_owner if of_role else of_database, sql.Identifier(*name.split("."))))


def _ensure_extension(conninfo: str, name: str, version: str) -> None:
    create = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} VERSION {} CASCADE")
    try:
        with connect(conninfo, purpose="rehearsal") as connection, translate_errors(f"extension {name}"):
            connection.execute(create.format(sql.Identifier(name), sql.Literal(version)))
    except StatementFailedError:
        return  # not installed here, or not in this version


def differing_extensions(origin: Origin, connection: psycopg.Connection) -> list[str]:
    """Return a line for each extension that a server lacks, or has in another version."""
    found: Mapping[str, str] = dict(connection.execute(_EXTENSIONS).fetchall())
    return [
        f"{name} {found[name]} instead of {version}" if name in found else f"no extension {name} {version}"
        for name, version in origin.extensions
        if found.get(name) != version
    ]
