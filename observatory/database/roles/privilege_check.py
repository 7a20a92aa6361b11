"""Compares the privileges that a role has with those of its profile. Changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import psycopg
from psycopg import sql

from observatory.database.roles.grants import Grants, Target
from observatory.database.roles.privileges import Profile, privileges_of, unrecorded_tables

_COMPARED = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"})
_PRIVILEGES = """
    SELECT relation, array_agg(privilege)
    FROM unnest(%(relations)s::text[]) AS relation,
         unnest(%(compared)s::text[]) AS privilege
    WHERE has_table_privilege(%(role)s, to_regclass(relation), privilege)
    GROUP BY relation
"""
_LACKS_COLUMN = "SELECT to_regclass(%s) IS NOT NULL AND NOT has_column_privilege(%s, %s, %s, %s)"
_MAY_UPDATE_LAST_USED = "SELECT has_column_privilege(%(role)s, 'public.api_keys', 'last_used_at', 'UPDATE')"


def wrong_privileges(
    connection: psycopg.Connection,
    role: str,
    profile: Profile,
    *,
    relations: Collection[str],
    tables: Collection[str],
    grants: Grants,
) -> list[str]:
    """Return a line for each relation on which the role has other privileges than its profile, or is not recorded.

    Args:
        connection: to the database.
        role: its name.
        profile: of the role; see `grant_access`.
        relations: to compare, as `schema.name`.
        tables: those of the relations that are tables.
        grants: of migrations, which the role has besides.

    Raises:
        psycopg.Error: PostgreSQL rejected a query.
    """
    values = {"role": role, "relations": list(relations), "compared": sorted(_COMPARED)}
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %(role)s", values).fetchone() is None:
        return [f"there is no role {role}"]
    held = {relation: frozenset(names) for relation, names in connection.execute(_PRIVILEGES, values).fetchall()}
    wrong = []
    for relation in relations:
        schema, name = relation.split(".", 1)
        expected = privileges_of(profile, schema, name, is_table=relation in tables)
        expected |= grants.get(Target(role, schema, name), frozenset()) & _COMPARED
        if (has := held.get(relation, frozenset())) != expected:
            wrong.append(f"{role} on {relation}: {_listed(has)}, expected {_listed(expected)}")
    wrong += _wrong_columns(connection, role, grants)
    updates_last_used = profile == "service" and "public.api_keys" in relations
    if updates_last_used and connection.execute(_MAY_UPDATE_LAST_USED, values).fetchone() == (False,):
        wrong.append(f"{role} may not update public.api_keys.last_used_at")
    if profile == "administrator":
        unrecorded = [f"{schema}.{name}" for schema, name in unrecorded_tables(connection)]
        wrong += [f"changes of {name} by {role} are not recorded" for name in unrecorded if name in tables]
    return wrong


def _wrong_columns(connection: psycopg.Connection, role: str, grants: Grants) -> Iterator[str]:
    """Yield a line for each privilege on a column that a migration grants and the role lacks."""
    for target, privileges in grants.items():
        name = sql.Identifier(target.schema, target.relation).as_string()
        for privilege in sorted(privileges) if target.role == role and target.column else ():
            values = [name, role, name, target.column, privilege]
            if connection.execute(_LACKS_COLUMN, values).fetchone() == (True,):
                yield f"{role} may not {privilege} {target.schema}.{target.relation}.{target.column}"


def _listed(privileges: frozenset[str]) -> str:
    return ", ".join(sorted(privileges)) or "nothing"
