"""Refuses grants that give a privilege to others than the group roles, or that the program sets itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pglast import ast
from pglast.enums import GrantTargetType, ObjectType, RoleSpecType

from observatory.database.lint.declared_objects import DeclaredObjects, strings
from observatory.database.lint.declared_schema import walk
from observatory.database.roles.group_roles import ENGINE_SCHEMAS, GROUP_ROLES, SECRET_TABLES

_NAMED = RoleSpecType.ROLESPEC_CSTRING
_GRANTED = {
    *(ObjectType.OBJECT_TABLE, ObjectType.OBJECT_SEQUENCE, ObjectType.OBJECT_TYPE, ObjectType.OBJECT_DOMAIN),
    *(ObjectType.OBJECT_FUNCTION, ObjectType.OBJECT_PROCEDURE, ObjectType.OBJECT_ROUTINE, ObjectType.OBJECT_SCHEMA),
}
_SYSTEM = ("pg_", "information_schema", "_timescaledb", "timescaledb_")


def wrong_grants(node: ast.Node, objects: DeclaredObjects) -> Iterator[tuple[int, str]]:
    """Yield why a grant is not allowed: the offset, and the message."""
    yield from _shown_secrets(node)
    grant: Any = node.action if isinstance(node, ast.AlterDefaultPrivilegesStmt) else node
    if not isinstance(grant, ast.GrantStmt) or not grant.is_grant:
        return
    allowed = f"Grant to {', '.join(GROUP_ROLES)} only"
    for role in grant.grantees or ():
        if role.roletype == RoleSpecType.ROLESPEC_PUBLIC:
            yield _place(role), f"GRANT TO PUBLIC gives a privilege to every login. {allowed}"
        elif role.roletype != _NAMED or role.rolename not in GROUP_ROLES:
            name = role.rolename if role.roletype == _NAMED else "the current user"
            yield _place(role), f"{name} is a login, or no role of this stack. {allowed}, which logins inherit"
    if grant.grant_option:
        yield 0, "WITH GRANT OPTION lets a login give the privilege on. Remove it"
    yield from _targets(grant, objects)


def _targets(grant: ast.GrantStmt, objects: DeclaredObjects) -> Iterator[tuple[int, str]]:
    if grant.targtype in {GrantTargetType.ACL_TARGET_ALL_IN_SCHEMA, GrantTargetType.ACL_TARGET_DEFAULTS}:
        yield 0, "this grant includes objects that it does not name, also those of the stack. Name each object"
        return
    if grant.objtype not in _GRANTED:
        yield 0, "the program or the server sets these privileges. Grant on tables, views, sequences and functions"
        return
    if grant.objtype == ObjectType.OBJECT_SCHEMA and not _is_usage(grant):
        yield 0, "only migrations create objects in a schema. Grant USAGE on it"
    for item in grant.objects or ():
        if grant.objtype == ObjectType.OBJECT_SCHEMA:
            schema, name = strings(item)[0], ""
        elif isinstance(item, ast.RangeVar):
            schema, name = objects.relation(item)
        else:
            schema, name = objects.resolve(strings(getattr(item, "objname", item)) or ("",), "routine")
        own = bool(name) and objects.created(("relation", schema, name)) > 0
        if schema.startswith(_SYSTEM) or (name.startswith("pg_") and not own):
            yield 0, f"{name or schema} belongs to PostgreSQL or an extension. Remove the grant"
        elif schema in ENGINE_SCHEMAS:
            yield 0, f"the program sets the privileges in the schema {schema} itself. Remove the grant"
        elif name in SECRET_TABLES:
            yield 0, f"{name} holds secrets; the program sets the privileges on it itself. Remove the grant"


def _is_usage(grant: ast.GrantStmt) -> bool:
    return bool(grant.privileges) and all(each.priv_name == "usage" for each in grant.privileges)


def _shown_secrets(node: ast.Node) -> Iterator[tuple[int, str]]:
    """Yield views and copies of secret tables: the group roles may read what is in `public`."""
    if not isinstance(node, ast.ViewStmt | ast.CreateTableAsStmt):
        return
    for each in walk(node.query):
        if isinstance(each, ast.RangeVar) and each.relname in SECRET_TABLES:
            yield (
                max(each.location or 0, 0),
                f"{each.relname} holds secrets, which this would show to readers. Remove it",
            )


def _place(role: ast.RoleSpec) -> int:
    return max(role.location or 0, 0)
