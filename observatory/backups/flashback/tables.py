"""A table as the comparison reads it: its columns, its key, its time column and how long its rows are kept.

Read in both databases. What both cannot be compared by, or rows cannot be restored with, is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg import errors as pg
from psycopg import sql

from observatory.backups.flashback.errors import TableRefusedError
from observatory.database.roles.privileges import RECORDED

_OF_THE_STACK = ("observatory", "audit", "cron", "information_schema")
_PREFIXES = ("pg_", "_timescaledb_", "timescaledb_")
_TABLE_KINDS = ("r", "p")  # of pg_class.relkind: ordinary and partitioned tables
_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "i": "an index"}
_BY_HAND = "Compare and copy the rows with SQL: `observatory backup flashback` without --table opens the earlier state."

_RELATION: LiteralString = """
    SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.relhasrules,
           c.relkind = 'r' AND n.nspname <> '_timescaledb_internal' AND EXISTS (
               SELECT FROM pg_inherits i JOIN pg_class child ON child.oid = i.inhrelid
               JOIN pg_namespace s ON s.oid = child.relnamespace
               WHERE i.inhparent = c.oid AND s.nspname NOT LIKE '\\_timescaledb%%')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%s)
"""
# SQL folds a name without quotes to lower case, and finds only those of the schema `public` without their schema.
_SIMILAR: LiteralString = """
    SELECT format('%%I.%%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE lower(relname) = lower(%s) AND relkind::text = ANY (%s) AND nspname !~ '^(pg_|_?timescaledb_)' ORDER BY 1
"""
_COLUMNS: LiteralString = """
    SELECT attname, format_type(atttypid, atttypmod), attnotnull, attgenerated <> '', attidentity <> '' OR atthasdef,
           pg_get_serial_sequence(quote_ident(%(schema)s) || '.' || quote_ident(%(name)s), attname)
    FROM pg_attribute WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_KEYS: LiteralString = """
    SELECT array_agg(attname::text ORDER BY place)
    FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS part (attnum, place)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = part.attnum
    WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL
      AND i.indexprs IS NULL AND part.place <= i.indnkeyatts
    GROUP BY i.indexrelid, i.indisprimary, i.indnkeyatts HAVING bool_and(a.attnotnull)
    ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid
"""
# Of the library and of TimescaleDB: the first record changes of administrators, the second note what to refresh.
_TRIGGERS: LiteralString = """
    SELECT t.tgname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE t.tgrelid = %s AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND t.tgtype & 4 = 4
      AND n.nspname NOT LIKE '\\_timescaledb%%' AND NOT (n.nspname = 'audit' AND t.tgname = %s)
    ORDER BY 1
"""
_HAS_TIMESCALEDB = "SELECT to_regclass('timescaledb_information.dimensions') IS NOT NULL"
_DIMENSION: LiteralString = """
    SELECT column_name, time_interval IS NOT NULL FROM timescaledb_information.dimensions
    WHERE hypertable_schema = %s AND hypertable_name = %s AND dimension_number = 1
"""
# A time outside of Python's calendar is no bound: the range beside it holds several chunks.
_BOUNDS: LiteralString = """
    SELECT DISTINCT CASE WHEN range_start BETWEEN '0001-01-02' AND '9999-12-30' THEN range_start END,
                    CASE WHEN range_end BETWEEN '0001-01-02' AND '9999-12-30' THEN range_end END,
                    range_start_integer, range_end_integer FROM timescaledb_information.chunks
    WHERE hypertable_schema = %s AND hypertable_name = %s
"""
_POLICY: LiteralString = """
    SELECT now() - (config ->> 'drop_after')::interval FROM timescaledb_information.jobs
    WHERE proc_name = 'policy_retention' AND hypertable_schema = %s AND hypertable_name = %s
"""
_JOB: LiteralString = """
    SELECT now() - substring(command FROM $$INTERVAL '([^']+)'$$)::interval FROM observatory.jobs
    WHERE starts_with(command, format('CALL observatory.drop_old_chunks(%%L,', %s || '.' || %s))
"""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table; `filled` if it has a default or is an identity, `sequence` is what numbers it."""

    name: str
    type: str
    not_null: bool
    generated: bool
    filled: bool
    sequence: str | None


@dataclass(frozen=True, kw_only=True)
class Side:
    """A table in one of the two databases."""

    oid: int
    schema: str
    name: str
    columns: tuple[Column, ...]
    keys: tuple[tuple[str, ...], ...]
    dimension: tuple[str, bool] | None  # the hypertable's first column, and whether it is a time
    bounds: frozenset[Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that both databases have.

    Attributes:
        schema: of the table.
        name: of the table.
        columns: those that both have, without generated ones, in the live table's order.
        key: the columns that identify a row; empty for a table without a key.
        time: the column that a hypertable is partitioned by; None for another table.
        is_time: whether that column is a time, not a number.
        bounds: where chunks of either database begin or end, in order.
        expired: rows before this time are about to be dropped, or were; None where none are.
        new_columns: those that were added since.
        sequences: those that number rows, by column.
        types: of the columns.
    """

    schema: str
    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    time: str | None
    is_time: bool
    bounds: tuple[Any, ...]
    expired: datetime | None
    new_columns: tuple[str, ...]
    sequences: Mapping[str, str]
    types: Mapping[str, str]

    @property
    def identifier(self) -> sql.Identifier:
        """The name as a part of a query."""
        return sql.Identifier(self.schema, self.name)

    def __str__(self) -> str:
        """Return the name as it is written in messages."""
        return self.name if self.schema == "public" else f"{self.schema}.{self.name}"


def read_table(clone: psycopg.Connection, live: psycopg.Connection, name: str, *, at: str) -> Table:
    """Return the table that both databases have under a name.

    Args:
        clone: a session of the database as it was.
        live: a session of the live database.
        name: of the table, with or without a schema, as SQL writes it.
        at: the earlier time, for messages.

    Raises:
        TableRefusedError: it is missing in one of them, is no table, or has other columns or another key since.
    """
    relation = _relation(live, name)
    before = _relation(clone, name if relation is None else _quoted(live, relation[1], relation[2]))
    if relation is None and before is None:
        raise TableRefusedError(f"there is no table {name}", remedy="`observatory psql -- -c '\\d'` lists the tables.")
    if relation is None:
        raise TableRefusedError(
            f"the table {name} existed at {at}, but the live database has none of this name",
            remedy="Create it first (`observatory deploy database`), or copy its rows with SQL.",
        )
    if before is None:
        raise TableRefusedError(f"the table {name} did not exist at {at}", remedy="Choose a later --to-time.")
    _check_kind(relation)
    _check_kind(before)
    now, then = _side(live, relation), _side(clone, before)
    return _merged(now, then, _expired(live, now))


def live_table(live: psycopg.Connection, name: str) -> sql.Identifier:
    """Return the live table of a name, before an earlier state of it exists.

    Raises:
        TableRefusedError: there is none, or it is no table whose rows can be compared.
    """
    relation = _relation(live, name)
    if relation is None:
        if similar := _similar(live, name):
            raise TableRefusedError(
                f"the live database has no table {name}, but {', '.join(similar)}",
                remedy=f"Write it as SQL does: --table '{similar[0]}'.",
            )
        raise TableRefusedError(
            f"the live database has no table {name}",
            remedy="`observatory psql -- -c '\\d'` lists the tables. Create a dropped one first (`observatory deploy "
            "database`), or open the earlier state without --table and copy its rows with SQL.",
        )
    _check_kind(relation)
    return sql.Identifier(relation[1], relation[2])


def check_restorable(live: psycopg.Connection, table: Table) -> None:
    """Refuse a table into which missing rows cannot be inserted as they were.

    Raises:
        TableRefusedError: it has rules or own triggers, a new column must be filled, or its rows have neither a key
            nor a time.
    """
    relation = _relation(live, _quoted(live, table.schema, table.name))
    if relation is None:
        raise TableRefusedError(f"the table {table} was dropped meanwhile", remedy=_BY_HAND)
    triggers = [name for (name,) in live.execute(_TRIGGERS, [relation[0], RECORDED]).fetchall()]
    if triggers or relation[5]:
        what = f"the trigger{'s' * (len(triggers) > 1)} {', '.join(triggers)}" if triggers else "rewrite rules"
        raise TableRefusedError(
            f"{table} has {what}, which would change the restored rows or act on them once more", remedy=_BY_HAND
        )
    side = _side(live, relation)
    if needed := [c.name for c in side.columns if c.name in table.new_columns and c.not_null and not c.filled]:
        raise TableRefusedError(
            f"{table} has the new column {', '.join(needed)}, which must have a value that earlier rows lack",
            remedy="Give the column a default by a migration, or copy the rows with SQL.",
        )
    if not table.key and table.time is None:
        raise TableRefusedError(
            f"{table} has no key and no time: a changed row cannot be distinguished from a deleted and a new one",
            remedy=f"The difference is shown without --restore-missing. {_BY_HAND}",
        )


def _relation(connection: psycopg.Connection, name: str) -> Any:
    try:
        return connection.execute(_RELATION, [name]).fetchone()
    except (pg.InvalidName, pg.SyntaxError, pg.DataError, pg.FeatureNotSupported) as error:
        raise TableRefusedError(f"{name!r} is no name of a table: {error.diag.message_primary}") from None


def _similar(connection: psycopg.Connection, name: str) -> list[str]:
    """Return the tables whose names differ in their schema or in the case of letters, as SQL writes them."""
    plain = name.rpartition(".")[2].strip('" ')
    return [found for (found,) in connection.execute(_SIMILAR, [plain, list(_TABLE_KINDS)]).fetchall()]


def _quoted(connection: psycopg.Connection, schema: str, name: str) -> str:
    return sql.Identifier(schema, name).as_string(connection)


def _check_kind(relation: Any) -> None:
    _, schema, name, kind, persistence, _, has_children = relation
    what = f"{schema}.{name}"
    if schema in _OF_THE_STACK or schema.startswith(_PREFIXES):
        raise TableRefusedError(
            f"{what} belongs to the stack or to the server, and is not restored by rows",
            remedy="Aggregates follow from their table: compare llm_traces, whose restored rows refresh them.",
        )
    if kind not in _TABLE_KINDS:
        raise TableRefusedError(
            f"{what} is {_KINDS.get(kind, 'no table')}",
            remedy="Name the table whose rows it shows; the aggregates of restored rows are refreshed.",
        )
    if persistence != "p":
        raise TableRefusedError(f"{what} is an unlogged table, whose rows no backup has")
    if has_children:
        raise TableRefusedError(f"other tables inherit from {what}", remedy="Name one of those, or copy with SQL.")


def _side(connection: psycopg.Connection, relation: Any) -> Side:
    oid, schema, name, *_ = relation
    columns = connection.execute(_COLUMNS, {"oid": oid, "schema": schema, "name": name}).fetchall()
    fields = ("name", "type", "not_null", "generated", "filled", "sequence")
    dimension, bounds = None, []
    if connection.execute(_HAS_TIMESCALEDB).fetchone() == (True,):
        dimension = connection.execute(_DIMENSION, [schema, name]).fetchone()
        bounds = connection.execute(_BOUNDS, [schema, name]).fetchall()
    return Side(
        oid=oid,
        schema=schema,
        name=name,
        columns=tuple(Column(**dict(zip(fields, row, strict=True))) for row in columns),
        keys=tuple(tuple(key) for (key,) in connection.execute(_KEYS, [oid]).fetchall()),
        dimension=dimension,
        bounds=frozenset(edge for row in bounds for edge in row if edge is not None),
    )


def _merged(now: Side, then: Side, expired: datetime | None) -> Table:
    name = f"{now.schema}.{now.name}"
    live = {column.name: column for column in now.columns}
    lost = [c.name for c in then.columns if c.name not in live and not c.generated]
    other = [
        f"{c.name} was {c.type}, now {live[c.name].type}"
        for c in then.columns
        if c.name in live and (c.type, c.generated) != (live[c.name].type, live[c.name].generated)
    ]
    if lost or other:
        changes = [f"{each} is gone" for each in lost] + other
        raise TableRefusedError(f"columns of {name} have changed since: {'; '.join(changes)}", remedy=_BY_HAND)
    if now.keys and not set(now.keys) & set(then.keys):
        raise TableRefusedError(f"the key of {name} has changed since: now ({', '.join(now.keys[0])})", remedy=_BY_HAND)
    before = {column.name for column in then.columns}
    is_time = now.dimension is not None and now.dimension[1]
    same = now.dimension is not None and (then.dimension is None or now.dimension == then.dimension)
    return Table(
        schema=now.schema,
        name=now.name,
        columns=tuple(c.name for c in now.columns if c.name in before and not c.generated),
        key=next((key for key in now.keys if key in then.keys), ()),
        time=now.dimension[0] if now.dimension else None,
        is_time=is_time,
        bounds=tuple(sorted(now.bounds | then.bounds if same else now.bounds)),
        expired=expired if is_time else None,
        new_columns=tuple(c.name for c in now.columns if c.name not in before),
        sequences={c.name: c.sequence for c in now.columns if c.sequence and c.name in before},
        types={c.name: c.type for c in now.columns},
    )


def _expired(live: psycopg.Connection, side: Side) -> datetime | None:
    """Return the time before which rows are not kept."""
    if side.dimension is None or not side.dimension[1]:
        return None
    found = live.execute(_POLICY, [side.schema, side.name]).fetchone()
    if found is None and live.execute("SELECT to_regclass('observatory.jobs') IS NOT NULL").fetchone() == (True,):
        found = live.execute(_JOB, [side.schema, side.name]).fetchone()
    return found[0] if found else None
