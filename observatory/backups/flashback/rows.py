"""Reads the rows of a table in a fixed order, and finds and copies single ones, in either database.

A row is identified by the text of its key's columns. A row of a table without a key is identified by its time and the
digest of its content, and there may be several of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from observatory.backups.flashback.condition import Condition
from observatory.backups.flashback.tables import Table

Identity = tuple[str, ...]
Range = tuple[Any, Any]  # of the time: from, inclusive, and to, exclusive; None is open

# Texts of values are the same in both databases: nothing of role or database decides on them.
SETTINGS = {
    "search_path": "public",
    "timezone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    "xmlbinary": "base64",
    "row_security": "off",  # an error, where rows would be hidden
    "jit": "off",
    "max_parallel_workers_per_gather": "0",  # two databases are read at once, on the machine of the live one
    "transaction_timeout": "0",
}
READ_ONLY = {**SETTINGS, "default_transaction_read_only": "on"}

_ORDERED = """
    SELECT {names} FROM (SELECT {keys}, {digest} AS flashback_digest FROM {table} WHERE {chosen}) AS flashback_rows
    ORDER BY {order}
"""
_COUNTED = """
    SELECT flashback_time, flashback_digest, count(*) FROM (
        SELECT {time} COLLATE "C" AS flashback_time, {digest} COLLATE "C" AS flashback_digest
        FROM {source}) AS flashback_rows
    GROUP BY 1, 2 ORDER BY 1, 2
"""
_ALL = "{table} WHERE {chosen}"
# One index lookup for each wanted row, whatever the planner's statistics are: a chunk is not read once for each batch.
_BY_KEY = """
    SELECT {columns} FROM unnest({lists}) AS flashback_wanted ({names})
    CROSS JOIN LATERAL (SELECT * FROM {table} WHERE {chosen} AND {pairs} LIMIT 1) AS flashback_rows
"""
_AT = """
    unnest({times}::text[]) AS flashback_moment CROSS JOIN LATERAL (
        SELECT * FROM {table} WHERE {chosen} AND {column} = flashback_moment::{type} OFFSET 0
    ) AS found
"""
_BY_CONTENT = """
    SELECT {columns} FROM (
        SELECT found.*, {time} AS flashback_time, {digest} AS flashback_digest,
               row_number() OVER (PARTITION BY {time}, {digest}) AS flashback_number
        FROM {source}
    ) AS flashback_rows
    JOIN unnest({lists}, {counts}::bigint[]) AS flashback_wanted (flashback_time, flashback_digest, flashback_most)
    USING (flashback_time, flashback_digest) WHERE flashback_number <= flashback_most
"""


def ranges(table: Table) -> list[Range]:
    """Return ranges of the time that hold all rows between them, in order, each of one chunk at most."""
    edges = [None, *table.bounds, None]
    return list(itertools.pairwise(edges))


@dataclass(frozen=True)
class Rows:
    """The rows of a table, without those that a condition leaves out."""

    table: Table
    condition: Condition | None

    def read(self, connection: psycopg.Connection, within: Range) -> Iterator[tuple[Identity, str]]:
        """Yield identity and content of each row, in the order of the identities.

        The content is a digest, or in a table without a key the number of such rows.
        """
        rows = sql.SQL(_ALL).format(table=self.table.identifier, chosen=self._chosen(within))
        query = self._by_key(within) if self.table.key else self._by_content(rows)
        yield from _copied(connection, query)

    def read_at(
        self, connection: psycopg.Connection, within: Range, times: Sequence[str]
    ) -> Iterator[tuple[Identity, str]]:
        """As `read`, of a table without a key: all rows of some instants, also those that the condition leaves out."""
        yield from _copied(connection, self._by_content(self._at(within, times)))

    def count(self, connection: psycopg.Connection, within: Range) -> int:
        """Return the number of rows."""
        query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(self.table.identifier, self._chosen(within))
        row = connection.execute(query).fetchone()
        return int(row[0]) if row else 0

    def existing(self, connection: psycopg.Connection, within: Range, identities: Sequence[Identity]) -> set[Identity]:
        """Return which rows exist, also those that the condition leaves out; of a table with a key."""
        columns = sql.SQL(", ").join(
            sql.SQL("flashback_rows.{}::text").format(sql.Identifier(each)) for each in self.table.key
        )
        return set(connection.execute(self._found_by_key(within, identities, columns)).fetchall())

    def select(self, within: Range, found: Sequence[tuple[Identity, int]]) -> sql.Composed:
        """Return the query for whole rows: of each identity so many."""
        columns = sql.SQL(", ").join(
            sql.SQL("flashback_rows.{}").format(sql.Identifier(each)) for each in self.table.columns
        )
        if self.table.key:
            return self._found_by_key(within, [identity for identity, _ in found], columns)
        times, digests = ([identity[place] for identity, _ in found] for place in (0, 1))
        return sql.SQL(_BY_CONTENT).format(
            columns=columns,
            time=self._time(),
            digest=self._digest(),
            source=self._at(within, times),
            lists=sql.SQL("{}::text[], {}::text[]").format(sql.Literal(times), sql.Literal(digests)),
            counts=sql.Literal([number for _, number in found]),
        )

    def _at(self, within: Range, times: Sequence[str]) -> sql.Composed:
        """Return the rows of some instants, whatever the condition, as a query has them after FROM."""
        assert self.table.time is not None  # noqa: S101 - `check_restorable` refuses others
        return sql.SQL(_AT).format(
            times=sql.Literal(sorted(set(times))),
            table=self.table.identifier,
            chosen=self._within(within),
            column=sql.Identifier(self.table.time),
            type=sql.SQL(self.table.types[self.table.time]),
        )

    def _by_key(self, within: Range) -> sql.Composed:
        names = [sql.Identifier(f"flashback_{number}") for number in range(len(self.table.key))]
        keys = [
            sql.SQL("{}::text AS {}").format(sql.Identifier(column), name)
            for column, name in zip(self.table.key, names, strict=True)
        ]
        return sql.SQL(_ORDERED).format(
            names=sql.SQL(", ").join([*names, sql.Identifier("flashback_digest")]),
            keys=sql.SQL(", ").join(keys),
            digest=self._digest(),
            table=self.table.identifier,
            chosen=self._chosen(within),
            order=sql.SQL(", ").join(sql.SQL('{} COLLATE "C"').format(name) for name in names),
        )

    def _by_content(self, source: sql.Composable) -> sql.Composed:
        return sql.SQL(_COUNTED).format(time=self._time(), digest=self._digest(), source=source)

    def _found_by_key(self, within: Range, identities: Sequence[Identity], columns: sql.Composable) -> sql.Composed:
        names = [sql.Identifier(f"flashback_{number}") for number in range(len(self.table.key))]
        lists = [
            sql.SQL("{}::text[]").format(sql.Literal([identity[place] for identity in identities]))
            for place in range(len(names))
        ]
        # Each value is cast by itself: unnest() would also open an array that is a value.
        pairs = [
            sql.SQL("{} = flashback_wanted.{}::{}").format(
                sql.Identifier(column), name, sql.SQL(self.table.types[column])
            )
            for column, name in zip(self.table.key, names, strict=True)
        ]
        return sql.SQL(_BY_KEY).format(
            columns=columns,
            table=self.table.identifier,
            lists=sql.SQL(", ").join(lists),
            names=sql.SQL(", ").join(names),
            pairs=sql.SQL(" AND ").join(pairs),
            chosen=self._within(within),
        )

    def _digest(self) -> sql.Composed:
        columns = sql.SQL(", ").join(map(sql.Identifier, self.table.columns))
        return sql.SQL("encode(sha256(convert_to(ROW({})::text, 'UTF8')), 'base64')").format(columns)

    def _time(self) -> sql.Composable:
        return sql.SQL("{}::text").format(sql.Identifier(self.table.time)) if self.table.time else sql.SQL("''::text")

    def _chosen(self, within: Range) -> sql.Composable:
        if self.condition is None:
            return self._within(within)
        return sql.SQL("{} AND {}").format(self._within(within), self.condition.query)

    def _within(self, within: Range) -> sql.Composable:
        parts: list[sql.Composable] = [sql.SQL("true")]
        if self.table.time:
            column = sql.Identifier(self.table.time)
            parts += [
                sql.SQL("{} {} {}").format(column, sql.SQL(sign), sql.Literal(edge))
                for sign, edge in ((">=", within[0]), ("<", within[1]))
                if edge is not None
            ]
        return sql.SQL(" AND ").join(parts)


def _copied(connection: psycopg.Connection, query: sql.Composable) -> Iterator[tuple[Identity, str]]:
    """Yield the rows of a query: all columns but the last, and the last."""
    with connection.cursor().copy(sql.SQL("COPY ({}) TO STDOUT").format(query)) as copy:
        for row in copy.rows():
            yield row[:-1], row[-1]
