"""Copies the schema of a database without its rows to another server; hypertables stay hypertables.

`pg_dump --schema-only` leaves out the rows of TimescaleDB's catalogue, without which its hypertables would be plain
tables. So these rows are copied too, except those of chunks, whose tables are left out.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors
from observatory.database.errors import UnreachableError, UnsuitableServerError

DUMP_TIMEOUT_S = 300
_PLACE = "the copy of the schema"
_OPTIONS = (
    *("--schema-only", "--no-publications", "--no-subscriptions", "--no-tablespaces", "--no-comments"),
    # `ensure_database` makes the audit, which the owner may not read.
    *("--exclude-schema=audit", "--exclude-table=_timescaledb_internal._hyper_*_chunk"),
    "--exclude-table=_timescaledb_internal.compress_hyper_*_chunk",
)
_OF_HYPERTABLES = (
    "relid IN (SELECT format('%I.%I', schema_name, table_name)::regclass FROM _timescaledb_catalog.hypertable)"
)
_CATALOGUE = {
    "_timescaledb_catalog.hypertable": "true",
    "_timescaledb_catalog.tablespace": "true",
    "_timescaledb_catalog.dimension": "true",
    "_timescaledb_catalog.compression_settings": _OF_HYPERTABLES,
    "_timescaledb_catalog.continuous_agg": "true",
    "_timescaledb_catalog.continuous_aggs_bucket_function": "true",
    "_timescaledb_catalog.continuous_aggs_invalidation_threshold": "true",
    "_timescaledb_catalog.continuous_aggs_watermark": "true",
    "_timescaledb_config.bgw_job": "id >= 1000",  # not TimescaleDB's own
}
_NUMBERED = ("_timescaledb_catalog.hypertable", "_timescaledb_catalog.dimension", "_timescaledb_config.bgw_job")
_CONTINUE = """
    SELECT setval(pg_get_serial_sequence('{table}', 'id'), last)
    FROM (SELECT max(id) AS last FROM {table} WHERE {condition}) AS used WHERE last IS NOT NULL
"""
_VERSION = "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'"


def copy_schema(
    source: str, target: str, *, dump: Callable[[Sequence[str]], Sequence[str]], owner: str | None = None
) -> None:
    """Copy the schema of a database to one that has the same extensions and roles, and no relation.

    Args:
        source: as the role that owns the schema.
        target: as superuser.
        dump: returns the command that runs `pg_dump`.
        owner: of all objects of the copy; None: each has the owner that it has in the source.

    Raises:
        UnreachableError: `pg_dump` failed, for example because the role may not read a table; or a server does not
            answer.
        UnsuitableServerError: the versions of TimescaleDB differ.
        StatementFailedError: the target rejected a statement.
    """
    script = _dumped(source, [*_OPTIONS, *(["--no-owner"] if owner else [])], dump)
    with connect(target, purpose="copy") as there, translate_errors(_PLACE):
        there.execute("SELECT timescaledb_pre_restore()")
    with connect(source, purpose="copy") as here, connect(target, purpose="copy") as there, translate_errors(_PLACE):
        if (needed := here.execute(_VERSION).fetchone()) != there.execute(_VERSION).fetchone():
            raise UnsuitableServerError(f"the throwaway server lacks TimescaleDB {needed[0] if needed else ''}")
        there.execute("DROP SCHEMA IF EXISTS observatory")  # the copy makes it anew
        if owner:
            there.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(owner)))
        there.execute(script.encode())
        there.execute("RESET ROLE")
        for table, condition in _CATALOGUE.items():
            _copy_rows(here, there, table, condition)
        for table in _NUMBERED:
            there.execute(_CONTINUE.format(table=table, condition=_CATALOGUE[table]).encode())
    with connect(target, purpose="copy") as there, translate_errors(_PLACE):
        there.execute("SELECT timescaledb_post_restore()")


def _dumped(source: str, options: Sequence[str], dump: Callable[[Sequence[str]], Sequence[str]]) -> str:
    """Return the statements of the schema. The password is not among the arguments, which every user may read."""
    parameters = conninfo_to_dict(source)
    password = parameters.pop("password", None)
    command = dump([*options, "--dbname", make_conninfo("", **parameters)])
    environment = {**os.environ, **({"PGPASSWORD": str(password)} if password else {})}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=DUMP_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnreachableError(f"pg_dump of the schema did not run: {error}. Run again") from error
    if done.returncode:
        last = " | ".join(done.stderr.splitlines()[-3:])
        raise UnreachableError(
            f"pg_dump of the schema failed: {last}. Let the role that owns the schema read all of it"
        )
    # Commands of psql, such as \restrict.
    return "\n".join(line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


def _copy_rows(here: psycopg.Connection, there: psycopg.Connection, table: str, condition: str) -> None:
    read = f"COPY (SELECT * FROM {table} WHERE {condition}) TO STDOUT"  # noqa: S608 - constants
    write = f"COPY {table} FROM STDIN"
    with here.cursor() as source, source.copy(read.encode()) as rows:
        copied = b"".join(rows)
    with there.cursor() as target, target.copy(write.encode()) as copy:
        copy.write(copied)
