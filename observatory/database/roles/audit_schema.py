"""The schema `audit`: its table of entries, and the trigger function that records administrators' changes of rows.

Created by a superuser and owned by `auditor`, which cannot log in. Does not own the entries of commands
(`observatory.database.audit_table`), nor which tables have the trigger (`observatory.database.roles.privileges`).
"""

from __future__ import annotations

import psycopg
from psycopg import sql

from observatory.database.advisory_locks import BOOTSTRAP_LOCK, LOCK_CLASS

AUDITOR, AUDIT_SCHEMA = "auditor", "audit"
TABLE = f"{AUDIT_SCHEMA}.entries"
ROWS_CHANGED = "rows-changed"  # the event of such an entry
RECORD_CHANGE = "record_change"
_FUNCTION = f"{AUDIT_SCHEMA}.{RECORD_CHANGE}()"

_CREATE = f"""
    CREATE TABLE {TABLE} (
        id text PRIMARY KEY,
        at timestamptz NOT NULL,
        actor text NOT NULL,
        event text NOT NULL,
        details jsonb NOT NULL,
        recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        recorded_by text NOT NULL DEFAULT session_user
    );
    CREATE FUNCTION {AUDIT_SCHEMA}.refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
        BEGIN
            RAISE EXCEPTION '% on %.% is refused: the audit is only added to', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
                USING ERRCODE = 'insufficient_privilege';
        END $$;
    REVOKE ALL ON FUNCTION {AUDIT_SCHEMA}.refuse_change() FROM PUBLIC;
    CREATE TRIGGER only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON {TABLE}
        FOR EACH STATEMENT EXECUTE FUNCTION {AUDIT_SCHEMA}.refuse_change();
    ALTER TABLE {TABLE} OWNER TO {AUDITOR};
    ALTER FUNCTION {AUDIT_SCHEMA}.refuse_change() OWNER TO {AUDITOR};
"""

# Without the statement's text and values, which may contain prompts. PostgreSQL counts the rows by transaction; those
# of a hypertable are in its chunks. The line of the log stays if the transaction is rolled back.
_CREATE_FUNCTION = f"""
    CREATE OR REPLACE FUNCTION {_FUNCTION} RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            changed text := format('%I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME);
            so_far bigint;
        BEGIN
            SELECT sum(CASE TG_OP WHEN 'INSERT' THEN pg_stat_get_xact_tuples_inserted(part)
                                  WHEN 'UPDATE' THEN pg_stat_get_xact_tuples_updated(part)
                                  ELSE pg_stat_get_xact_tuples_deleted(part) END)
                INTO so_far FROM (SELECT TG_RELID UNION ALL SELECT inhrelid FROM pg_inherits WHERE inhparent = TG_RELID)
                    AS parts (part);
            INSERT INTO {TABLE} (id, at, actor, event, details) VALUES (
                gen_random_uuid(), clock_timestamp(), session_user, '{ROWS_CHANGED}', jsonb_build_object(
                    'table', changed, 'operation', TG_OP, 'rows_in_transaction', so_far,
                    'transaction', pg_current_xact_id()::text, 'address', inet_client_addr()));
            RAISE LOG '% changed rows: % on %, % rows in transaction %',
                session_user, TG_OP, changed, so_far, pg_current_xact_id();
            RETURN NULL;
        END $$;
    REVOKE ALL ON FUNCTION {_FUNCTION} FROM PUBLIC;
    ALTER FUNCTION {_FUNCTION} OWNER TO {AUDITOR};
"""  # noqa: S608 - constants


def ensure_audit(connection: psycopg.Connection, *, owner: str) -> None:
    """Create the table and the function; `owner`, of the schema's tables, may create triggers that call it."""
    with connection.transaction():
        ensure_table(connection)
        connection.execute(_CREATE_FUNCTION.encode())
        role = sql.Identifier(owner)
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(AUDIT_SCHEMA), role))
        function = sql.Identifier(AUDIT_SCHEMA, RECORD_CHANGE)
        connection.execute(sql.SQL("GRANT EXECUTE ON FUNCTION {}() TO {}").format(function, role))


def ensure_table(connection: psycopg.Connection) -> None:
    """Create the table where it is missing, in the open transaction; a concurrent command waits for it."""
    if not audit_exists(connection):
        connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", [LOCK_CLASS, BOOTSTRAP_LOCK.key])
        if not audit_exists(connection):
            connection.execute(_CREATE.encode())


def audit_exists(connection: psycopg.Connection) -> bool:
    """Return whether the database has the table."""
    row = connection.execute("SELECT to_regclass(%s)", [TABLE]).fetchone()
    return row is not None and row[0] is not None
