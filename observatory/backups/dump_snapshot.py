"""What a manifest has from the server: the snapshot of a dump, and the rows of every table and chunk in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.rows import dict_row

from observatory.backups.dump_manifest import CronJob, DumpError, Grant, Role, Rows, Setting
from observatory.database.connection import connect

ATTEMPTS = 5  # TimescaleDB's own jobs make and drop chunks meanwhile
SETTINGS = {"lock_timeout": "60s", "idle_in_transaction_session_timeout": "0", "timezone": "UTC"}

_TABLES = """
    SELECT nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE relkind = 'r' AND relpersistence <> 't' AND nspname <> 'information_schema' AND nspname !~ '^pg_'
        AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
    ORDER BY nspname, relname
"""
# Without those that hold the compressed rows of others (state 2).
_HYPERTABLES = """
    SELECT schema_name, table_name FROM _timescaledb_catalog.hypertable WHERE compression_state <> 2 ORDER BY 1, 2
"""
# A chunk then counts its own rows, and a compressed chunk its batches, wherever the rows of a scan come from.
_AS_STORED = "SELECT set_config('timescaledb.enable_transparent_decompression', %s, false)"
_TABLE_BYTES = """
    SELECT coalesce(sum(pg_table_size(format('%%I.%%I', schema, name)::regclass)), 0)
    FROM unnest(%s::text[], %s::text[]) AS t (schema, name)
"""
_SERVER = """
    SELECT now() AS created, pg_current_wal_insert_lsn()::text AS lsn, current_database() AS database,
        current_setting('server_version_num')::int / 10000 AS postgresql,
        (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb') AS timescaledb,
        CASE current_setting('timescaledb.license', true) WHEN 'apache' THEN 'apache' ELSE 'community' END AS edition,
        pg_get_userbyid(datdba) AS owner, pg_database_size(oid) AS database_bytes
    FROM pg_database WHERE datname = current_database()
"""
_EXTENSIONS = "SELECT extname, extversion FROM pg_extension"
_SETTINGS = """
    SELECT CASE setrole WHEN 0 THEN NULL ELSE pg_get_userbyid(setrole) END AS role, split_part(entry, '=', 1) AS name,
        substr(entry, strpos(entry, '=') + 1) AS value
    FROM pg_db_role_setting, unnest(setconfig) AS entry
    WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
    ORDER BY 1 NULLS FIRST, 2
"""
_GRANTS = """
    SELECT privilege_type AS privilege, CASE grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(grantee) END AS grantee,
        is_grantable AS grantable
    FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba))) WHERE datname = current_database()
    ORDER BY 2 NULLS FIRST, 1
"""
_ROLES = """
    SELECT rolname AS name, rolconnlimit AS connection_limit, rolpassword AS verifier,
        rolvaliduntil::text AS valid_until,
        concat_ws(' ', CASE WHEN rolsuper THEN 'SUPERUSER' END, CASE WHEN NOT rolinherit THEN 'NOINHERIT' END,
            CASE WHEN rolcreaterole THEN 'CREATEROLE' END, CASE WHEN rolcreatedb THEN 'CREATEDB' END,
            CASE WHEN rolcanlogin THEN 'LOGIN' END, CASE WHEN rolreplication THEN 'REPLICATION' END,
            CASE WHEN rolbypassrls THEN 'BYPASSRLS' END) AS attributes,
        ARRAY(SELECT unnest(setconfig) FROM pg_db_role_setting WHERE setrole = r.oid AND setdatabase = 0) AS settings,
        ARRAY(SELECT jsonb_build_object('role', pg_get_userbyid(roleid), 'admin', bool_or(admin_option),
                'inherit', bool_or(inherit_option), 'set', bool_or(set_option))
            FROM pg_auth_members WHERE member = r.oid GROUP BY roleid ORDER BY 1) AS member_of
    FROM pg_authid r WHERE rolname !~ '^pg_' AND oid <> 10 ORDER BY rolname
"""
_CRON_JOBS = """
    SELECT jobname AS name, schedule, command, username, active FROM cron.job WHERE database = current_database()
    ORDER BY jobid
"""
_LEDGER = "SELECT version FROM observatory.schema_migrations WHERE statements_done = statements_total ORDER BY version"

Table = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """An open transaction whose snapshot other sessions can import by its name; its locks keep every table."""

    connection: psycopg.Connection
    name: str
    tables: Sequence[Table]

    def table_bytes(self) -> int:
        """Return the size of the tables on disk, without indexes."""
        schemas, names = [each[0] for each in self.tables], [each[1] for each in self.tables]
        return int(_value(self.connection, _TABLE_BYTES, [schemas, names]))

    def described(self) -> Mapping[str, Any]:
        """Return the fields of the manifest that the server has, except the rows."""
        migrations = self._migrations()
        return {
            **self._rows(_SERVER)[0],
            "extensions": dict(self.connection.execute(_EXTENSIONS).fetchall()),
            "schema_version": max(migrations, default=None),
            "migrations": migrations,
            "settings": [Setting(**each) for each in self._rows(_SETTINGS) if each["name"] != "timescaledb.restoring"],
            "grants": [Grant(**each) for each in self._rows(_GRANTS)],
            "roles": [Role(**each) for each in self._rows(_ROLES)],
            "cron_jobs": [CronJob(**each) for each in self._rows(_CRON_JOBS)] if self._exists("cron.job") else [],
        }

    def rows(self) -> Rows:
        """Count the rows of every table and chunk."""
        return count_rows(self.connection, self.tables)

    def _migrations(self) -> list[int]:
        if not self._exists("observatory.schema_migrations"):
            return []
        return [version for (version,) in self.connection.execute(_LEDGER).fetchall()]

    def _exists(self, table: str) -> bool:
        return bool(_value(self.connection, "SELECT to_regclass(%s) IS NOT NULL", [table]))

    def _rows(self, query: str) -> list[dict[str, Any]]:
        with self.connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query.encode()).fetchall()


@contextmanager
def exported_snapshot(conninfo: str) -> Iterator[Snapshot]:
    """Open a snapshot in which no table loses rows that it has: TRUNCATE and a compression wait for the dump.

    Neither obeys snapshots: without the locks a chunk that is compressed meanwhile would be dumped empty.

    Args:
        conninfo: the superuser's, to the database.

    Raises:
        DumpError: tables were made and dropped in each attempt.
        UnreachableError: no connection.
        psycopg.Error: the server rejected a statement; a lock was not to be had within a minute.
    """
    with connect(conninfo, purpose="dump", settings=SETTINGS) as connection:
        for _ in range(ATTEMPTS):
            if (tables := _locked(connection)) is not None:
                break
            connection.execute("ROLLBACK")
        else:
            raise DumpError(
                f"tables were made or dropped during each of {ATTEMPTS} attempts to lock them", remedy="Run again."
            )
        name = _value(connection, "SELECT pg_export_snapshot()")
        yield Snapshot(connection=connection, name=name, tables=tables)


def count_rows(connection: psycopg.Connection, tables: Sequence[Table]) -> Rows:
    """Count the rows of tables, and of all hypertables through TimescaleDB."""
    connection.execute(_AS_STORED, ["off"])
    stored = {_text(each): _count(connection, "SELECT count(*) FROM ONLY {}", each) for each in tables}
    connection.execute(_AS_STORED, ["on"])
    hypertables: list[Table] = connection.execute(_HYPERTABLES).fetchall()
    found = {_text(each): _count(connection, "SELECT count(*) FROM {}", each) for each in hypertables}
    return Rows(stored=stored, hypertables=found)


def count_all_rows(connection: psycopg.Connection) -> Rows:
    """Count the rows of all tables of the connection's database."""
    return count_rows(connection, _tables(connection))


def _tables(connection: psycopg.Connection) -> list[Table]:
    return connection.execute(_TABLES).fetchall()


def _locked(connection: psycopg.Connection) -> list[Table] | None:
    """Begin a transaction, lock all tables and return them; None where one was made or dropped meanwhile.

    No statement reads before the lock: the snapshot of the transaction is taken after it.
    """
    tables = _tables(connection)
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        if tables:
            names = sql.SQL(", ").join(sql.SQL("ONLY ") + sql.Identifier(*each) for each in tables)
            connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(names))
    except (pg.UndefinedTable, pg.InvalidSchemaName):
        return None
    return tables if _tables(connection) == tables else None


def _count(connection: psycopg.Connection, query: str, table: Table) -> int:
    row = connection.execute(sql.SQL(query).format(sql.Identifier(*table))).fetchone()
    return int(row[0]) if row else 0


def _value(connection: psycopg.Connection, query: str, values: Sequence[Any] = ()) -> Any:
    row = connection.execute(query.encode(), values or None).fetchone()
    return row[0] if row else None


def _text(table: Table) -> str:
    return sql.Identifier(*table).as_string()
