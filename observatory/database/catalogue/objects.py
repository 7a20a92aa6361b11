"""Describes the objects of a database as text that can be compared: one entry for each object that migrations may make.

Owns the queries. Leaves out the tables that the program itself makes, the audit's schema, the objects of extensions and
what TimescaleDB makes for its chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import psycopg

from observatory.database.catalogue.unusual_objects import UNUSUAL_OBJECTS

# Settings of the session: the texts of definitions depend on them.
SETTINGS: Mapping[str, str] = {
    "search_path": "",
    "timezone": "UTC",
    "intervalstyle": "postgres",
    "default_transaction_read_only": "on",
}


class Object(NamedTuple):
    """The key of an entry: a kind, and a name that is unique in it."""

    kind: str
    name: str


Objects = Mapping[Object, str]

# A schema of users, `n`; extensions own those of TimescaleDB and pg_cron, `ensure_database` the audit's.
_OF_USERS = """
    n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'audit')
    AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_namespace'::regclass AND objid = n.oid AND deptype = 'e')
"""
# A relation `c` in it. The program itself makes the ledger, and the state of samples and of flashbacks.
_OWN = "^(schema_migrations|repeatable_migrations|sample_|flashback_refreshes)"
_OF_MIGRATIONS = f"""
    {_OF_USERS} AND (n.nspname <> 'observatory' OR c.relname !~ '{_OWN}')
    AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
"""
# The program's own tables too: a trigger or a policy on the ledger changes what a deployment does.
_ANY_TABLE = f"""
    {_OF_USERS}
    AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
"""
_NOT_OF_EXTENSION = (
    "NOT EXISTS (SELECT FROM pg_depend WHERE classid = '{0}'::regclass AND objid = {1}.oid AND deptype = 'e')"
)

_CONDITIONS = {
    "of_users": _OF_USERS,
    "of_migrations": _OF_MIGRATIONS,
    "any_table": _ANY_TABLE,
    "type_not_of_extension": _NOT_OF_EXTENSION.format("pg_type", "t"),
    "event_trigger_not_of_extension": _NOT_OF_EXTENSION.format("pg_event_trigger", "e"),
    "server_not_of_extension": _NOT_OF_EXTENSION.format("pg_foreign_server", "s"),
    "cast_not_of_extension": _NOT_OF_EXTENSION.format("pg_cast", "k"),
    "operator_not_of_extension": _NOT_OF_EXTENSION.format("pg_operator", "o"),
    "routine_not_of_extension": _NOT_OF_EXTENSION.format("pg_proc", "p"),
}

_ALWAYS = (
    """
    SELECT 'table', n.nspname || '.' || c.relname,
           CASE WHEN c.relkind = 'f' THEN 'foreign table' WHEN h.hypertable_name IS NULL THEN 'table'
                ELSE 'hypertable' END
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN timescaledb_information.hypertables h
        ON h.hypertable_schema = n.nspname AND h.hypertable_name = c.relname
    WHERE c.relkind IN ('r', 'p', 'f') AND {of_migrations}
    """,
    """
    SELECT 'column', n.nspname || '.' || c.relname || '.' || a.attname,
           format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
           || CASE a.attidentity WHEN '' THEN '' ELSE ' identity' END
           || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
      AND {of_migrations}
    """,
    """
    SELECT 'view', n.nspname || '.' || c.relname, pg_get_viewdef(c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'v' AND {of_migrations}
      AND NOT EXISTS (SELECT FROM timescaledb_information.continuous_aggregates
                      WHERE view_schema = n.nspname AND view_name = c.relname)
    """,
    """
    SELECT 'chunk interval', d.hypertable_schema || '.' || d.hypertable_name, d.column_name || ' ' || d.time_interval
    FROM timescaledb_information.dimensions d
    JOIN pg_namespace n ON n.nspname = d.hypertable_schema
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = d.hypertable_name
    WHERE {of_migrations}
    """,
    """
    SELECT 'index', n.nspname || '.' || x.relname,
           pg_get_indexdef(i.indexrelid) || CASE WHEN i.indisvalid AND i.indisready THEN '' ELSE ' (invalid)' END
    FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'm') AND {of_migrations}
    """,
    """
    SELECT 'constraint', n.nspname || '.' || c.relname || '.' || o.conname, pg_get_constraintdef(o.oid)
    FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE o.contype IN ('c', 'f', 'p', 'u', 'x') AND {of_migrations}
    """,
    """
    SELECT 'routine', n.nspname || '.' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
           CASE WHEN p.prokind <> 'a' THEN pg_get_functiondef(p.oid)
                ELSE (SELECT format('aggregate of %s, %s', aggtransfn, nullif(aggfinalfn::oid, 0)::regproc)
                      FROM pg_aggregate WHERE aggfnoid = p.oid) END
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE {of_users}
      AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = p.oid
                      AND deptype IN ('e', 'i'))
    """,
    """
    SELECT 'aggregate', view_schema || '.' || view_name,
           view_definition || CASE WHEN materialized_only THEN '' ELSE ' with rows that are not materialized yet' END
    FROM timescaledb_information.continuous_aggregates
    """,
    """
    SELECT 'policy', replace(j.proc_name, 'policy_', '') || ' of ' || coalesce(a.view_name, j.hypertable_name),
           'every ' || j.schedule_interval || ' ' || (j.config - 'hypertable_id' - 'mat_hypertable_id')::text
           || CASE WHEN j.scheduled THEN '' ELSE ' (switched off)' END
    FROM timescaledb_information.jobs j
    LEFT JOIN timescaledb_information.continuous_aggregates a
        ON a.materialization_hypertable_schema = j.hypertable_schema
        AND a.materialization_hypertable_name = j.hypertable_name
    WHERE j.hypertable_name IS NOT NULL
    """,
    """
    SELECT 'compression', hypertable::text, concat_ws('; ', 'segments by ' || segmentby, 'ordered by ' || orderby)
    FROM timescaledb_information.hypertable_compression_settings
    WHERE orderby IS NOT NULL AND hypertable::text NOT LIKE '\\_timescaledb\\_internal.%'
    """,
)

# Tables that migrations make, and the objects that their rows describe.
_BY_TABLE = {
    "observatory.aggregates": """
        SELECT 'aggregate', name, format('buckets of %s, from %s to %s ago', bucket, refresh_from, refresh_to)
        FROM observatory.aggregates
    """,
    "observatory.jobs": "SELECT 'job', name, schedule || ' ' || command FROM observatory.jobs",
    # Not those that `schedule_jobs` copies from that table.
    "cron.job": """
        SELECT 'pg_cron job', coalesce(jobname, 'without a name: ' || command),
               schedule || ' ' || command || CASE WHEN active THEN '' ELSE ' (switched off)' END
        FROM cron.job WHERE database = current_database() AND NOT starts_with(coalesce(jobname, ''), 'observatory: ')
    """,
}


def read_objects(connection: psycopg.Connection) -> dict[Object, str]:
    """Return the objects of a database with their definitions.

    Args:
        connection: opened with `SETTINGS`, as the role that owns the schema.

    Raises:
        psycopg.Error: PostgreSQL rejected a query.
    """
    queries = [*_ALWAYS, *UNUSUAL_OBJECTS]
    for table, query in _BY_TABLE.items():
        if connection.execute("SELECT to_regclass(%s) IS NOT NULL", [table]).fetchone() == (True,):
            queries.append(query)
    rows = (row for query in queries for row in connection.execute(_completed(query).encode()).fetchall())
    return {Object(kind, name): definition for kind, name, definition in rows}


def _completed(query: str) -> str:
    for name, condition in _CONDITIONS.items():
        query = query.replace(f"{{{name}}}", condition)
    return query
