"""What the service's role may do: read the whole schema, add traces, metrics and logs, note when a key was used.

Owns the privileges on relations. Who may log in and reach the schemas at all is `observatory.database.bootstrap`.
"""

from __future__ import annotations

import psycopg
from psycopg import sql

from observatory.database.connection import connect
from observatory.database.errors import readable

SCHEMAS = ["public", "observatory"]
READ = frozenset({"SELECT"})
INGEST = frozenset({"SELECT", "INSERT"})
INGEST_TABLES = frozenset({"llm_traces", "llm_metrics", "llm_logs"})

_RELATIONS = """
    SELECT nspname, relname, array_agg(privilege_type) FILTER (WHERE privilege_type IS NOT NULL)
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = relnamespace
    LEFT JOIN LATERAL aclexplode(relacl) a ON grantee = %(role)s::regrole
    WHERE nspname = ANY (%(schemas)s) AND relkind IN ('r', 'v', 'm', 'p') AND relowner = %(owner)s::regrole
      AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
    GROUP BY nspname, relname
"""

_MAY_NOTE_USE = """
    SELECT has_column_privilege(%(role)s::regrole, 'public.api_keys', 'last_used_at', 'UPDATE')
    WHERE to_regclass('public.api_keys') IS NOT NULL
"""


def grant_access(conninfo: str, *, role: str) -> None:
    """Bring a role's privileges to what the service needs; no change where they are so.

    Run it after each deployment of the schema: a new table can be read from its creation on, but not yet written.

    Args:
        conninfo: as the role that owns the schema.
        role: made by `ensure_login`.

    Raises:
        StatementFailedError: PostgreSQL refused, for example because there is no such role.
        UnreachableError: no connection, or it broke.
    """
    with connect(conninfo, purpose="grant access") as connection, readable(f'privileges of "{role}"'):
        grant_relations(connection, role=role, owner=connection.info.user)


def grant_relations(connection: psycopg.Connection, *, role: str, owner: str) -> None:
    """Grant and revoke what differs on the owner's relations, those of extensions left out, in one transaction."""
    identifiers = {"role": sql.Identifier(role).as_string(), "owner": sql.Identifier(owner).as_string()}
    with connection.transaction():
        rows = connection.execute(_RELATIONS, {"schemas": SCHEMAS, **identifiers}).fetchall()
        for schema, relation, held in rows:
            wanted = INGEST if relation in INGEST_TABLES else READ
            granted = frozenset(held or ())
            _change(connection, "GRANT {} ON {} TO {}", wanted - granted, (schema, relation), role)
            _change(connection, "REVOKE {} ON {} FROM {}", granted - wanted, (schema, relation), role)
        # After the table's: revoking an UPDATE of the table revokes those of its columns too.
        if connection.execute(_MAY_NOTE_USE, identifiers).fetchone() == (False,):
            grant = sql.SQL("GRANT UPDATE (last_used_at) ON public.api_keys TO {}")
            connection.execute(grant.format(sql.Identifier(role)))


def _change(
    connection: psycopg.Connection, statement: str, privileges: frozenset[str], relation: tuple[str, str], role: str
) -> None:
    if privileges:
        listed = sql.SQL(", ").join(map(sql.SQL, sorted(privileges)))
        connection.execute(sql.SQL(statement).format(listed, sql.Identifier(*relation), sql.Identifier(role)))
