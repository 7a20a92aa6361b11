"""The tables that store items, and their SQL. Independent of HTTP."""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psycopg
from psycopg import sql
from pydantic import BaseModel

Row = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose columns are named like the fields of its item.

    Attributes:
        name: name of the table.
        columns: columns, in the order of a row.
        key: columns that identify a row; empty if duplicate rows are allowed.
    """

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...] = ()

    @cached_property
    def identifier(self) -> sql.Identifier:
        """The name of the table as an SQL identifier."""
        return sql.Identifier(self.name)

    @cached_property
    def column_list(self) -> sql.Composed:
        """The columns as SQL, separated by commas."""
        return sql.SQL(", ").join(map(sql.Identifier, self.columns))

    @cached_property
    def _values(self) -> Callable[[BaseModel], Row]:
        return operator.attrgetter(*self.columns)

    def rows(self, items: Iterable[BaseModel]) -> list[Row]:
        """Convert items to rows, one for each key, in the order of keys.

        The order prevents deadlocks between transactions with the same keys.
        """
        if not self.key:
            return [self._values(item) for item in items]
        unique: dict[Row, BaseModel] = {}
        for item in items:
            unique.setdefault(tuple(getattr(item, column) for column in self.key), item)
        return [self._values(item) for _, item in sorted(unique.items(), key=lambda entry: entry[0])]


async def store(connection: psycopg.AsyncConnection[Any], table: Table, rows: Sequence[Row]) -> None:
    """Store rows in one transaction; a row whose key exists is not changed.

    COPY cannot skip duplicates, so a batch with a duplicate (a client that retries) uses a temporary table. That is
    slower and leaves dead rows in the catalogue, but most batches have no duplicate. Both ways are one transaction
    without session state, so they work through a transaction pooler.
    """
    try:
        async with connection.transaction(), connection.cursor() as cursor:
            await _copy(cursor, table, table.identifier, rows)
    except psycopg.errors.UniqueViolation:
        async with connection.transaction(), connection.cursor() as cursor:
            await _copy_new(cursor, table, rows)


async def _copy(cursor: psycopg.AsyncCursor[Any], table: Table, target: sql.Identifier, rows: Sequence[Row]) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(target, table.column_list)
    async with cursor.copy(statement) as copy:
        for row in rows:
            await copy.write_row(row)


async def _copy_new(cursor: psycopg.AsyncCursor[Any], table: Table, rows: Sequence[Row]) -> None:
    incoming = sql.Identifier("incoming")
    names = {"table": table.identifier, "incoming": incoming, "columns": table.column_list}
    await cursor.execute(sql.SQL("CREATE TEMP TABLE {incoming} (LIKE {table}) ON COMMIT DROP").format(**names))
    await _copy(cursor, table, incoming, rows)
    insert = "INSERT INTO {table} ({columns}) SELECT {columns} FROM {incoming} ON CONFLICT DO NOTHING"
    await cursor.execute(sql.SQL(insert).format(**names))
