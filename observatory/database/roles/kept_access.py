"""Access that outlives a restore of the database: roles with their passwords and memberships, and API keys.

An earlier state of a database has the passwords and keys of that time: those that were changed since would be refused,
and those that were revoked would be accepted. So they are read before a restore, and written into what was restored.
Privileges on tables come with the tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb
from pydantic import BaseModel, ConfigDict, Field

from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors

_ROLES: LiteralString = """
    SELECT rolname AS name, rolsuper AS superuser, rolinherit AS inherit, rolcreaterole AS createrole,
           rolcreatedb AS createdb, rolcanlogin AS login, rolreplication AS replication, rolbypassrls AS bypassrls,
           rolconnlimit AS connections, rolpassword AS verifier,
           rolvaliduntil::text AS valid_until,
           coalesce((SELECT setconfig FROM pg_db_role_setting
                     WHERE setrole = r.oid AND setdatabase = 0), '{}') AS settings
    FROM pg_authid r WHERE NOT starts_with(rolname, 'pg_') ORDER BY oid
"""
_MEMBERSHIPS: LiteralString = """
    SELECT role.rolname AS role, member.rolname AS member, bool_or(admin_option) AS admin,
           bool_or(inherit_option) AS inherit, bool_or(set_option) AS set, array_agg(grantor.rolname) AS grantors
    FROM pg_auth_members m JOIN pg_authid role ON role.oid = m.roleid JOIN pg_authid member ON member.oid = m.member
    JOIN pg_authid grantor ON grantor.oid = m.grantor
    GROUP BY 1, 2 ORDER BY 1, 2
"""
_SCHEMAS: LiteralString = """
    SELECT n.nspname AS schema, r.rolname AS role, a.privilege_type AS privilege
    FROM pg_namespace n CROSS JOIN aclexplode(n.nspacl) AS a JOIN pg_authid r ON r.oid = a.grantee
    WHERE n.nspname !~ '^(pg_|_?timescaledb_)' ORDER BY 1, 2, 3
"""
_HAS_KEYS = "SELECT to_regclass('public.api_keys') IS NOT NULL"
_KEYS = "SELECT to_jsonb(k) AS key FROM public.api_keys k ORDER BY id"
# A key that is revoked stays so; one that was made since is added. Columns that the table lacks are left out.
_REVOKE: LiteralString = """
    UPDATE public.api_keys SET is_active = false WHERE key_hash = ANY (%s) AND is_active RETURNING 1
"""
_ADD: LiteralString = """
    INSERT INTO public.api_keys
    SELECT (jsonb_populate_record(NULL::public.api_keys, key || CASE
        WHEN key ->> 'user_id' IN (SELECT id FROM public.users) THEN '{}' ELSE '{"user_id": null}' END::jsonb)).*
    FROM unnest(%s::jsonb[]) AS given (key)
    WHERE NOT EXISTS (SELECT FROM public.api_keys k WHERE key_hash = key ->> 'key_hash' OR k.id::text = key ->> 'id')
    RETURNING 1
"""

# PostgreSQL stores their elements quoted (GUC_LIST_QUOTE of guc_tables.c); as one literal they would be one element.
_LISTS = frozenset({"local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces"})


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class KeptRole(_Kept):
    """A role; `verifier` is what PostgreSQL stores of its password, `settings` are those for all databases."""

    name: str
    superuser: bool
    inherit: bool
    createrole: bool
    createdb: bool
    login: bool
    replication: bool
    bypassrls: bool
    connections: int
    verifier: str | None
    valid_until: str | None
    settings: list[str]


class KeptMembership(_Kept):
    """The membership of a role in another one, with its options and who granted it."""

    role: str
    member: str
    admin: bool
    inherit: bool
    set: bool
    grantors: list[str]

    @property
    def options(self) -> tuple[bool, bool, bool]:
        """The options of the membership."""
        return self.admin, self.inherit, self.set


class KeptPrivilege(_Kept):
    """A privilege of a role on a schema."""

    schema_name: str = Field(alias="schema")
    role: str
    privilege: Literal["USAGE", "CREATE"]


class KeptAccess(_Kept):
    """Roles, memberships, rights on schemas and API keys; secret, because a verifier helps to guess a password."""

    roles: list[KeptRole]
    memberships: list[KeptMembership]
    privileges: list[KeptPrivilege]
    keys: list[dict[str, Any]]


def read_access(conninfo: str) -> KeptAccess:
    """Return the access of a server and of one of its databases.

    Args:
        conninfo: of the database, as superuser.

    Raises:
        StatementFailedError: PostgreSQL rejected a statement.
        UnreachableError: the connection failed or broke.
    """
    with connect(conninfo, purpose="read roles", settings={"timezone": "UTC"}) as connection, translate_errors("roles"):
        return _read(connection)


def apply_access(conninfo: str, access: KeptAccess) -> None:
    """Give a server the roles, passwords and memberships of `access`, and its database the API keys; all or nothing.

    A role that `access` lacks can no longer log in. A key that `access` lacks stays as it is.

    Args:
        conninfo: of the database, as superuser; changes nothing that is already correct.
        access: of the server before.

    Raises:
        StatementFailedError: PostgreSQL rejected a statement.
        UnreachableError: the connection failed or broke.
    """
    # A verifier must not reach the log.
    settings = {"timezone": "UTC", "client_min_messages": "warning", "log_statement": "none"}
    with (
        connect(conninfo, purpose="restore roles", settings=settings) as connection,
        translate_errors("roles"),
        connection.transaction(),
    ):
        found = _read(connection)
        _apply_roles(connection, {role.name: role for role in found.roles}, access.roles)
        _apply_memberships(connection, access.memberships)
        _apply_privileges(connection, access.privileges)
        if connection.execute(_HAS_KEYS).fetchone() == (True,):
            _apply_keys(connection, access.keys)


def _read(connection: psycopg.Connection) -> KeptAccess:
    with connection.cursor(row_factory=class_row(KeptRole)) as cursor:
        roles = cursor.execute(_ROLES).fetchall()
    keys: list[dict[str, Any]] = []
    if connection.execute(_HAS_KEYS).fetchone() == (True,):
        with connection.cursor(row_factory=dict_row) as cursor:
            keys = [row["key"] for row in cursor.execute(_KEYS).fetchall()]
    return KeptAccess(
        roles=roles, memberships=list(_memberships(connection).values()), privileges=_privileges(connection), keys=keys
    )


def _apply_roles(connection: psycopg.Connection, found: dict[str, KeptRole], kept: list[KeptRole]) -> None:
    for role in kept:
        if role == found.get(role.name):
            continue
        if role.name not in found:
            connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role.name)))
        connection.execute(_alter(role))
        _apply_settings(connection, role)
    for name in found.keys() - {role.name for role in kept}:
        connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN PASSWORD NULL").format(sql.Identifier(name)))


def _alter(role: KeptRole) -> sql.Composed:
    attributes = {
        "SUPERUSER": role.superuser,
        "INHERIT": role.inherit,
        "CREATEROLE": role.createrole,
        "CREATEDB": role.createdb,
        "LOGIN": role.login,
        "REPLICATION": role.replication,
        "BYPASSRLS": role.bypassrls,
    }
    return sql.SQL("ALTER ROLE {} {} CONNECTION LIMIT {} PASSWORD {} VALID UNTIL {}").format(
        sql.Identifier(role.name),
        sql.SQL(" ").join(sql.SQL(name if has else f"NO{name}") for name, has in attributes.items()),
        sql.Literal(role.connections),
        sql.SQL("NULL") if role.verifier is None else sql.Literal(role.verifier),
        sql.Literal(role.valid_until or "infinity"),
    )


def _apply_settings(connection: psycopg.Connection, role: KeptRole) -> None:
    connection.execute(sql.SQL("ALTER ROLE {} RESET ALL").format(sql.Identifier(role.name)))
    for setting in role.settings:
        name, _, value = setting.partition("=")
        quoted = sql.SQL(value) if name in _LISTS else sql.Literal(value)
        alter = sql.SQL("ALTER ROLE {} SET {} = {}")
        connection.execute(alter.format(sql.Identifier(role.name), sql.Identifier(name), quoted))


def _apply_memberships(connection: psycopg.Connection, kept: Iterable[KeptMembership]) -> None:
    wanted = {(each.role, each.member): each for each in kept}
    for (role, member), each in _memberships(connection).items():
        for grantor in each.grantors if (role, member) not in wanted else ():
            revoke = sql.SQL("REVOKE {} FROM {} GRANTED BY {} CASCADE")
            connection.execute(revoke.format(*map(sql.Identifier, (role, member, grantor))))
    present = _memberships(connection)  # a revocation may have ended others
    for (role, member), each in wanted.items():
        if (role, member) in present and each.options == present[role, member].options:
            continue
        options = sql.SQL(f"ADMIN {each.admin}, INHERIT {each.inherit}, SET {each.set}")
        grant = sql.SQL("GRANT {} TO {} WITH {}").format(sql.Identifier(role), sql.Identifier(member), options)
        connection.execute(grant)


def _memberships(connection: psycopg.Connection) -> dict[tuple[str, str], KeptMembership]:
    with connection.cursor(row_factory=class_row(KeptMembership)) as cursor:
        return {(each.role, each.member): each for each in cursor.execute(_MEMBERSHIPS).fetchall()}


def _privileges(connection: psycopg.Connection) -> list[KeptPrivilege]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return [KeptPrivilege.model_validate(row) for row in cursor.execute(_SCHEMAS).fetchall()]


def _apply_privileges(connection: psycopg.Connection, kept: list[KeptPrivilege]) -> None:
    found = _privileges(connection)
    for each in kept:
        exists = connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", [each.schema_name]).fetchone()
        if each not in found and exists is not None:
            grant = sql.SQL(f"GRANT {each.privilege} ON SCHEMA {{}} TO {{}}")
            connection.execute(grant.format(sql.Identifier(each.schema_name), sql.Identifier(each.role)))


def _apply_keys(connection: psycopg.Connection, keys: list[dict[str, Any]]) -> None:
    connection.execute(_REVOKE, [[key["key_hash"] for key in keys if not key["is_active"]]])
    connection.execute(_ADD, [[Jsonb(key) for key in keys]])
