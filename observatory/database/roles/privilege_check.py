"""Compares the privileges that a role has with those of its profile. Changes nothing."""

from __future__ import annotations

from collections.abc import Collection

import psycopg

from observatory.database.roles.privileges import Profile, privileges_of, unrecorded_tables

_PRIVILEGES = """
    SELECT relation, array_agg(privilege)
    FROM unnest(%(relations)s::text[]) AS relation,
         unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS privilege
    WHERE has_table_privilege(%(role)s, to_regclass(relation), privilege)
    GROUP BY relation
"""
_MAY_UPDATE_LAST_USED = "SELECT has_column_privilege(%(role)s, 'public.api_keys', 'last_used_at', 'UPDATE')"


def wrong_privileges(
    connection: psycopg.Connection, role: str, profile: Profile, *, relations: Collection[str], tables: Collection[str]
) -> list[str]:
    """Return a line for each relation on which the role has other privileges than its profile, or is not recorded.

    Args:
        connection: to the database.
        role: its name.
        profile: of the role; see `grant_access`.
        relations: to compare, as `schema.name`.
        tables: those of the relations that are tables.

    Raises:
        psycopg.Error: PostgreSQL rejected a query.
    """
    values = {"role": role, "relations": list(relations)}
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %(role)s", values).fetchone() is None:
        return [f"there is no role {role}"]
    held = {relation: frozenset(names) for relation, names in connection.execute(_PRIVILEGES, values).fetchall()}
    wrong = []
    for relation in relations:
        expected = privileges_of(profile, *relation.split(".", 1), is_table=relation in tables)
        if (has := held.get(relation, frozenset())) != expected:
            wrong.append(f"{role} on {relation}: {_listed(has)}, expected {_listed(expected)}")
    updates_last_used = profile == "service" and "public.api_keys" in relations
    if updates_last_used and connection.execute(_MAY_UPDATE_LAST_USED, values).fetchone() == (False,):
        wrong.append(f"{role} may not update public.api_keys.last_used_at")
    if profile == "administrator":
        unrecorded = [f"{schema}.{name}" for schema, name in unrecorded_tables(connection)]
        wrong += [f"changes of {name} by {role} are not recorded" for name in unrecorded if name in tables]
    return wrong


def _listed(privileges: frozenset[str]) -> str:
    return ", ".join(sorted(privileges)) or "nothing"
