"""The privileges of the service, readers and administrators on the schema's relations.

`components.access` owns logins and the privileges on databases and schemas.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import psycopg
from psycopg import sql

from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors
from observatory.database.roles.audit_schema import AUDIT_SCHEMA, RECORD_CHANGE
from observatory.database.roles.grants import Grants, Target
from observatory.database.roles.group_roles import SECRET_TABLES

Profile = Literal["service", "reader", "administrator"]

SCHEMAS = ["public", "observatory"]
CHANGED_SCHEMA = "public"  # in which administrators change rows
READ = frozenset({"SELECT"})
INGEST = frozenset({"SELECT", "INSERT"})
CHANGE = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"})
MERGE = INGEST | {"UPDATE"}
MERGE_TABLES = frozenset({"llm_traces"})  # a span that is sent again is updated
INGEST_TABLES = frozenset({"llm_traces", "llm_metrics", "llm_logs"})
_TABLES = frozenset({"r", "p"})  # of pg_class.relkind

_RELATIONS = """
    SELECT nspname, relname, relkind::text,
           array_agg(privilege_type) FILTER (WHERE privilege_type IS NOT NULL)
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = relnamespace
    LEFT JOIN LATERAL aclexplode(relacl) a ON grantee = %(role)s::regrole
    WHERE nspname = ANY (%(schemas)s) AND relkind IN ('r', 'v', 'm', 'p')
      AND relowner = quote_ident(current_user)::regrole
      AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
    GROUP BY nspname, relname, relkind
"""

_MAY_UPDATE_LAST_USED = """
    SELECT has_column_privilege(%(role)s::regrole, 'public.api_keys', 'last_used_at', 'UPDATE')
    WHERE to_regclass('public.api_keys') IS NOT NULL
"""


# Statements of a role's members, of superusers too. Without the role nothing is recorded and nothing fails.
_RECORD = """
    CREATE OR REPLACE TRIGGER {trigger} AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH STATEMENT
    WHEN (pg_has_role(session_user, to_regrole({role}), 'MEMBER')) EXECUTE FUNCTION {function}()
"""
RECORDED = "administrators_are_recorded"  # name of that trigger
_UNRECORDED = """
    SELECT nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE nspname = ANY (%(schemas)s) AND relkind IN ('r', 'p') AND pg_has_role(relowner, 'USAGE')
      AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
      AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgname = %(trigger)s AND tgenabled <> 'D')
      AND EXISTS (SELECT FROM pg_proc p WHERE pronamespace = to_regnamespace(%(audit)s) AND proname = %(function)s
                  AND has_schema_privilege(pronamespace, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE'))
    ORDER BY 1, 2
"""


def grant_access(conninfo: str, *, roles: Mapping[str, Profile], grants: Grants = MappingProxyType({})) -> None:
    """Grant and revoke until the roles have the privileges of their profiles; changes nothing that is already correct.

    Call it after each deployment of the schema: roles may read a new table at once, but not yet write to it.

    Args:
        conninfo: as the role that owns the schema.
        roles: the profile of each role. A service reads everything, inserts telemetry, updates traces and the time at
            which a key was last used; a reader reads everything except keys; an administrator also changes rows in
            `public`, and triggers record that in the audit.
        grants: of migrations, which the roles have besides.

    Raises:
        StatementFailedError: PostgreSQL rejected a statement, for example because the role does not exist.
        UnreachableError: the connection failed or broke.
    """
    with connect(conninfo, purpose="grant access") as connection:
        for role, profile in roles.items():
            with translate_errors(f'privileges of "{role}"'):
                _grant_relations(connection, role, profile, grants)
                if profile == "administrator":
                    _record_changes(connection, role)


def privileges_of(profile: Profile, schema: str, relation: str, *, is_table: bool) -> frozenset[str]:
    """Return the privileges of a profile on a relation; in own schemas a role has what migrations grant."""
    if schema not in SCHEMAS:
        return frozenset()
    if profile == "service":
        return MERGE if relation in MERGE_TABLES else INGEST if relation in INGEST_TABLES else READ
    if profile == "reader":
        return frozenset() if relation in SECRET_TABLES else READ
    return CHANGE if schema == CHANGED_SCHEMA and is_table else READ


def _grant_relations(connection: psycopg.Connection, role: str, profile: Profile, grants: Grants) -> None:
    """Grant and revoke the differences on the owner's relations, in one transaction; skip extensions' relations."""
    identifiers = {"role": sql.Identifier(role).as_string()}
    with connection.transaction():
        rows = connection.execute(_RELATIONS, {"schemas": SCHEMAS, **identifiers}).fetchall()
        for schema, relation, kind, held in rows:
            expected = privileges_of(profile, schema, relation, is_table=kind in _TABLES)
            expected |= grants.get(Target(role, schema, relation), frozenset())
            granted = frozenset(held or ())
            _change(connection, "GRANT {} ON {} TO {}", expected - granted, (schema, relation), role)
            _change(connection, "REVOKE {} ON {} FROM {}", granted - expected, (schema, relation), role)
            for target, privileges in grants.items():  # REVOKE on the table would also revoke it on its columns
                if target[:3] == (role, schema, relation) and target.column and granted - expected:
                    grant = sql.SQL("GRANT {} ({}) ON {} TO {}")
                    for privilege in sorted(privileges):
                        names = (sql.Identifier(target.column), sql.Identifier(schema, relation), sql.Identifier(role))
                        connection.execute(grant.format(sql.SQL(privilege), *names))
        if profile == "service":
            _grant_update_of_last_used(connection, role, identifiers)


def unrecorded_tables(connection: psycopg.Connection) -> list[tuple[str, str]]:
    """Return schema and name of the tables whose changes by administrators are not recorded.

    None where the server lacks the function that records them: `ensure_database` creates it.
    """
    names = {"schemas": [CHANGED_SCHEMA], "trigger": RECORDED, "audit": AUDIT_SCHEMA, "function": RECORD_CHANGE}
    rows = connection.execute(_UNRECORDED, names).fetchall()
    return [(schema, name) for schema, name in rows]


def _record_changes(connection: psycopg.Connection, role: str) -> None:
    """Create the trigger on the tables that an administrator may change.

    Each one in a transaction of its own: it waits for the table's writers, and new writers wait for it.
    """
    for table in unrecorded_tables(connection):
        create = sql.SQL(_RECORD).format(
            trigger=sql.Identifier(RECORDED),
            table=sql.Identifier(*table),
            role=sql.Literal(sql.Identifier(role).as_string()),
            function=sql.Identifier(AUDIT_SCHEMA, RECORD_CHANGE),
        )
        connection.execute(create)


def _grant_update_of_last_used(connection: psycopg.Connection, role: str, identifiers: Mapping[str, str]) -> None:
    """Grant UPDATE of one column, last: REVOKE of UPDATE on the table would also revoke it on the columns."""
    if connection.execute(_MAY_UPDATE_LAST_USED, identifiers).fetchone() == (False,):
        grant = sql.SQL("GRANT UPDATE (last_used_at) ON public.api_keys TO {}")
        connection.execute(grant.format(sql.Identifier(role)))


def _change(
    connection: psycopg.Connection, statement: str, privileges: frozenset[str], relation: tuple[str, str], role: str
) -> None:
    if privileges:
        listed = sql.SQL(", ").join(map(sql.SQL, sorted(privileges)))
        connection.execute(sql.SQL(statement).format(listed, sql.Identifier(*relation), sql.Identifier(role)))
