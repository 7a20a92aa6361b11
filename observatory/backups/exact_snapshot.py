"""A snapshot of the tables whose place in the WAL is known, while other sessions write.

A restore that ends at `ExactSnapshot.lsn` has the rows of the snapshot and no others. Owns the locks that make this so,
and the list of the tables. `observatory.backups.recording` reads their rows.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

import psycopg
from psycopg import sql
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_delay, wait_random

from observatory.database.connection import connect
from observatory.errors import ObservatoryError

LOCK_MS = 100  # for which writers may wait, all tables together
PATIENCE_S = 5.0
PAUSE_S = (0.05, 0.25)  # in which those that waited can write
NOT_AFFECTED = "The backup is complete. The next one records values again: `observatory backup create`."
PLAIN = re.compile(r"[a-z_][a-z0-9_$]*")  # names that need no quotes
Kind = Literal["table", "chunk", "compressed"]

# Texts of values are the same on another server. The heap of a compressed chunk is read as it is stored.
SETTINGS: Mapping[str, str] = {
    "search_path": "pg_catalog",
    "timezone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "timescaledb.enable_transparent_decompression": "off",
    "idle_in_transaction_session_timeout": "0",
    "lock_timeout": "0",
    "default_transaction_isolation": "repeatable read",
    "max_parallel_workers_per_gather": "0",
    "row_security": "off",
}

# Every table with rows that a restore brings back: without those of extensions, unlogged and temporary ones.
_TABLES = """
    WITH chunk AS ({chunks}), root AS ({roots})
    SELECT c.oid::bigint, n.nspname, c.relname, c.relfilenode::bigint,
           coalesce(k.kind, 'table'), k.hypertable, k.newest,
           EXISTS (SELECT FROM root WHERE (root.schema, root.name) = (n.nspname, c.relname)) AS is_root
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN chunk k ON (k.schema, k.name) = (n.nspname, c.relname)
    WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                      AND d.deptype = 'e')
    ORDER BY n.nspname, c.relname
"""
_CHUNKS = """
    SELECT k.schema_name AS schema, k.table_name AS name, k.hypertable_id AS hypertable, k.id AS newest,
           CASE WHEN p.compression_state = 2 THEN 'compressed' ELSE 'chunk' END AS kind
    FROM _timescaledb_catalog.chunk k JOIN _timescaledb_catalog.hypertable p ON p.id = k.hypertable_id
    WHERE NOT k.dropped AND NOT k.osm_chunk
"""
_ROOTS = "SELECT schema_name AS schema, table_name AS name FROM _timescaledb_catalog.hypertable"
_NO_CHUNKS = "SELECT ''::name AS schema, ''::name AS name, 0 AS hypertable, 0 AS newest, '' AS kind WHERE false"
_HAS_CHUNKS = "SELECT to_regclass('_timescaledb_catalog.chunk') IS NOT NULL"
# Evaluated in this order: a snapshot for the statement, then its columns.
_PLACE = """
    SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text, clock_timestamp(),
           ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int
"""
# Of sessions and prepared transactions that may change rows of one chunk without a lock on its hypertable.
_WRITTEN = """
    SELECT DISTINCT relation::bigint FROM pg_locks
    WHERE locktype = 'relation' AND granted AND pid IS DISTINCT FROM pg_backend_pid()
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""
_SYSTEM = "SELECT system_identifier::text FROM pg_control_system()"


class ValuesNotRecordedError(ObservatoryError):
    """The values of the tables were not recorded; the backup is not affected."""


class _MovedError(ObservatoryError):
    """A transaction ended between the snapshot and its place in the WAL."""


def qualified(schema: str, name: str) -> str:
    """Return a table's name with its schema, in quotes where they need them."""
    return ".".join(each if PLAIN.fullmatch(each) else f'"{each}"' for each in (schema, name))


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, a chunk, or the compressed rows of a chunk.

    Attributes:
        oid: its identifier in this database.
        schema: its schema.
        name: its name in the schema.
        storage: the number of its file, which another one replaces when the table is rewritten.
        kind: what it is.
        hypertable: identifier of the hypertable of a chunk.
        newest: a number that is higher for a newer chunk.
    """

    oid: int
    schema: str
    name: str
    storage: int
    kind: Kind
    hypertable: int | None
    newest: int | None

    @property
    def qualified(self) -> str:
        """The name with its schema, as in messages and files."""
        return qualified(self.schema, self.name)


@dataclass(frozen=True, kw_only=True)
class ExactSnapshot:
    """A snapshot that other sessions can import while the block lasts that yields it.

    Attributes:
        identifier: for `SET TRANSACTION SNAPSHOT`.
        lsn: the place in the WAL: every transaction in the snapshot ends before it, every other one after it.
        timeline: of that WAL.
        taken: the server's time.
        system: the identifier of the database system.
        tables: those whose rows the snapshot has exactly.
        left_out: names of those that other sessions were changing past their hypertable.
    """

    identifier: str
    lsn: str
    timeline: int
    taken: datetime
    system: str
    tables: tuple[Table, ...]
    left_out: frozenset[str]


@contextlib.contextmanager
def exact_snapshot(conninfo: str, *, patience_s: float = PATIENCE_S) -> Iterator[ExactSnapshot]:
    """Yield a snapshot of the database's tables; writers wait for milliseconds, at most `LOCK_MS` at a time.

    Args:
        conninfo: to the database, as superuser.
        patience_s: seconds to try again while transactions on the tables do not end.

    Raises:
        ValuesNotRecordedError: they did not end in time.
        UnreachableError: the server is unreachable.
    """
    with (
        connect(conninfo, purpose="backup values", settings=SETTINGS) as connection,
        connect(conninfo, purpose="backup values", settings=SETTINGS) as witness,
    ):
        attempts = Retrying(
            retry=retry_if_exception_type(
                (
                    psycopg.errors.LockNotAvailable,
                    psycopg.errors.QueryCanceled,
                    psycopg.errors.UndefinedTable,
                    _MovedError,
                )
            ),
            stop=stop_after_delay(patience_s),
            wait=wait_random(*PAUSE_S),
        )
        try:
            snapshot = attempts(_take, connection, witness)
        except RetryError as error:
            raise ValuesNotRecordedError(
                f"the values of the tables were not recorded: for {patience_s:g} s other sessions wrote to them "
                "without a pause, or held a lock on them",
                remedy=NOT_AFFECTED,
            ) from error
        try:
            yield snapshot
        finally:
            if not connection.closed:
                connection.execute("ROLLBACK")


def _take(connection: psycopg.Connection, witness: psycopg.Connection) -> ExactSnapshot:
    """Lock the tables against writers, take a snapshot with its place in the WAL, and release the locks."""
    roots = [sql.Identifier(schema, name) for schema, name in _roots(connection)]
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        connection.execute("SAVEPOINT unlocked")
        if roots:
            _lock(connection, roots)
        # A writer's commit is in the WAL before it releases its locks, so that none is between the two.
        seen, lsn, taken, timeline = _row(connection, _PLACE)
        written = {oid for (oid,) in connection.execute(_WRITTEN.encode())}
        if _row(witness, "SELECT pg_current_snapshot()::text") != (seen,):
            raise _MovedError  # noqa: TRY301 - tried again
        connection.execute("ROLLBACK TO SAVEPOINT unlocked")  # releases the locks and keeps the snapshot
        connection.execute("RELEASE SAVEPOINT unlocked")
        tables = _tables(connection)
        [identifier] = _row(connection, "SELECT pg_export_snapshot()")
        [system] = _row(connection, _SYSTEM)
    except BaseException:
        if not connection.closed:
            connection.execute("ROLLBACK")
        raise
    return ExactSnapshot(
        identifier=identifier,
        lsn=lsn,
        timeline=timeline,
        taken=taken,
        system=system,
        tables=tuple(each for each in tables if each.oid not in written),
        left_out=frozenset(each.qualified for each in tables if each.oid in written),
    )


def _lock(connection: psycopg.Connection, roots: list[sql.Identifier]) -> None:
    """Wait until no transaction writes, at most `LOCK_MS`: those that would write wait behind this lock."""
    names = sql.SQL(", ").join(sql.SQL("ONLY {}").format(each) for each in roots)
    connection.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(LOCK_MS))
    connection.execute(sql.SQL("LOCK TABLE {} IN SHARE MODE").format(names))
    connection.execute("SET LOCAL statement_timeout = 0")


def _roots(connection: psycopg.Connection) -> list[tuple[str, str]]:
    """Return the tables that every writer locks: all but chunks, which are written through their hypertable."""
    return [(schema, name) for _, schema, name, _, kind, *_ in _listed(connection) if kind == "table"]


def _tables(connection: psycopg.Connection) -> list[Table]:
    """Return the tables that can have rows; a hypertable's are in its chunks."""
    return [
        Table(
            oid=oid,
            schema=schema,
            name=name,
            storage=storage,
            kind=cast("Kind", kind),
            hypertable=parent,
            newest=newest,
        )
        for oid, schema, name, storage, kind, parent, newest, is_root in _listed(connection)
        if not is_root
    ]


def table_names(connection: psycopg.Connection) -> dict[str, Kind]:
    """Return the kinds of the database's tables, by name."""
    return {each.qualified: each.kind for each in _tables(connection)}


def _listed(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    [has_chunks] = _row(connection, _HAS_CHUNKS)
    chunks, roots = (_CHUNKS, _ROOTS) if has_chunks else (_NO_CHUNKS, _NO_CHUNKS)
    return connection.execute(_TABLES.format(chunks=chunks, roots=roots).encode()).fetchall()


def _row(connection: psycopg.Connection, statement: str) -> tuple[Any, ...]:
    found = connection.execute(statement.encode()).fetchone()
    return tuple(found or ())
