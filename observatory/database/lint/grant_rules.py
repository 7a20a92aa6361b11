"""Refuses grants that give a privilege to others than the group roles, or that the program sets itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pglast import ast
from pglast.enums import GrantTargetType, ObjectType, RoleSpecType

from observatory.database.lint.declared_objects import DeclaredObjects, strings
from observatory.database.roles.group_roles import ENGINE_SCHEMAS, GROUP_ROLES, SECRET_TABLES

_NAMED = RoleSpecType.ROLESPEC_CSTRING


def wrong_grants(node: ast.Node, objects: DeclaredObjects) -> Iterator[tuple[int, str]]:
    """Yield why a grant is not allowed: the offset, and the message."""
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
    for item in grant.objects or ():
        if grant.objtype == ObjectType.OBJECT_SCHEMA:
            schema, name = strings(item)[0], ""
        elif isinstance(item, ast.RangeVar):
            schema, name = objects.relation(item)
        else:
            schema, name = objects.resolve(strings(getattr(item, "objname", item)) or ("",), "routine")
        if schema in ENGINE_SCHEMAS:
            yield 0, f"the program sets the privileges in the schema {schema} itself. Remove the grant"
        elif name in SECRET_TABLES:
            yield 0, f"{name} holds secrets; the program sets the privileges on it itself. Remove the grant"


def _place(role: ast.RoleSpec) -> int:
    return max(role.location or 0, 0)
