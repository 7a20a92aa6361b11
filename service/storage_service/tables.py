"""The tables that store items, and their SQL. Independent of HTTP."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec
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
        json_columns: columns of type jsonb; rows have their text.
        key: columns that identify a row; empty if duplicate rows are allowed.
        not_given: values that, like NULL, do not replace the value of a stored row, by column.
    """

    name: str
    columns: tuple[str, ...]
    json_columns: frozenset[str] = frozenset()
    key: tuple[str, ...] = ()
    not_given: Mapping[str, object] = field(default_factory=dict)

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

        The order prevents deadlocks between transactions with the same keys. Of several items with the same key, each
        updates those before it, as it would update the stored row.
        """
        if not self.key:
            return [self._values(item) for item in items]
        key = operator.attrgetter(*self.key)
        unique: dict[Row, Row] = {}
        for item in items:
            row, name = self._values(item), key(item)
            unique[name] = self._updated(unique[name], row) if name in unique else row
        return [row for _, row in sorted(unique.items(), key=operator.itemgetter(0))]

    def _updated(self, stored: Row, row: Row) -> Row:
        return tuple(
            old if new is None or new == self.not_given.get(column) else new
            for column, old, new in zip(self.columns, stored, row, strict=True)
        )

    def as_json(self, rows: Iterable[Row]) -> str:
        """Return rows as a JSON list of objects, as `json_populate_recordset` reads it."""
        return msgspec.json.encode([self._as_object(row) for row in rows]).decode()

    def _as_object(self, row: Row) -> dict[str, Any]:
        named = dict(zip(self.columns, row, strict=True))
        texts = {column: msgspec.Raw(named[column].encode()) for column in self.json_columns if named[column]}
        return named | texts

    @cached_property
    def merge(self) -> sql.Composed:
        """The statement that inserts rows, and updates those that exist; returns whether each row is new."""
        others = [column for column in self.columns if column not in self.key]
        new = {column: self._new_value(column) for column in others}
        assignments = [sql.SQL("{} = {}").format(sql.Identifier(column), value) for column, value in new.items()]
        current = [sql.SQL("stored.{}").format(sql.Identifier(column)) for column in others]
        return sql.SQL(
            "{insert} DO UPDATE SET {assignments} WHERE ({current}) IS DISTINCT FROM ({new}) RETURNING xmax = 0"
        ).format(
            insert=self._insert,
            assignments=sql.SQL(", ").join(assignments),
            current=sql.SQL(", ").join(current),
            new=sql.SQL(", ").join(new.values()),
        )

    @cached_property
    def insert_new(self) -> sql.Composed:
        """The statement that inserts the rows that do not exist; returns true for each of them."""
        return sql.SQL("{} DO NOTHING RETURNING true").format(self._insert)

    @property
    def _insert(self) -> sql.Composed:
        key = sql.SQL(", ").join(map(sql.Identifier, self.key))
        return sql.SQL(
            "INSERT INTO {table} AS stored ({columns}) "
            "SELECT {columns} FROM json_populate_recordset(NULL::{table}, %s) ORDER BY {key} ON CONFLICT ({key})"
        ).format(table=self.identifier, columns=self.column_list, key=key)

    def _new_value(self, column: str) -> sql.Composed:
        given = sql.SQL("excluded.{}").format(sql.Identifier(column))
        if column in self.not_given:
            given = sql.SQL("nullif({}, {})").format(given, sql.Literal(self.not_given[column]))
        return sql.SQL("coalesce({}, stored.{})").format(given, sql.Identifier(column))


async def store(
    connection: psycopg.AsyncConnection[Any], table: Table, rows: Sequence[Row], *, expect_repeated: bool = False
) -> int:
    """Store rows in one transaction; a row whose key exists is updated. Returns the number of new rows.

    COPY is the fastest way, but fails if a key exists. Then, or if repeated keys are expected, the rows are merged.
    Both ways are one transaction without session state, so they work through a transaction pooler.
    """
    if not (expect_repeated and table.key):
        try:
            async with connection.transaction(), connection.cursor() as cursor:
                await _copy(cursor, table, rows)
        except psycopg.errors.UniqueViolation:
            pass
        else:
            return len(rows)
    return await _merge(connection, table, rows)


async def _copy(cursor: psycopg.AsyncCursor[Any], table: Table, rows: Sequence[Row]) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(table.identifier, table.column_list)
    async with cursor.copy(statement) as copy:
        for row in rows:
            await copy.write_row(row)


async def _merge(connection: psycopg.AsyncConnection[Any], table: Table, rows: Sequence[Row]) -> int:
    """Insert or update rows; a role without the privilege to update, from before release 0.3, only inserts."""
    async with connection.cursor() as cursor:
        await cursor.execute("SELECT has_table_privilege(%s, 'UPDATE')", [table.name])
        may_update = await cursor.fetchone() == (True,)
        await cursor.execute(table.merge if may_update else table.insert_new, [table.as_json(rows)])
        return sum(new for (new,) in await cursor.fetchall())
