"""Reads of spans, page by page. Independent of HTTP.

A page ends at its limit of items or of bytes, whichever comes first, so one request takes a bounded part of the memory
however long the texts are. Rows arrive one at a time and are encoded as they arrive.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.numeric import FloatLoader
from pydantic_core import to_json

from .cursors import Value, parse_time
from .sending import Download
from .traces import TRACES

MAX_SPANS = 1000  # of one page
MAX_PAGE_BYTES = 8 * 1024 * 1024
"""Bytes of a page's items as JSON, unless one item alone has more. Encoding them takes about 30 ms of one core."""
_DAY = timedelta(days=1)

Connection = psycopg.AsyncConnection[Any]


@dataclass(frozen=True, kw_only=True)
class Order:
    """A total order of spans.

    Attributes:
        columns: the time first; together they identify a span among those that are listed.
        newest_first: the direction of all of them.
        sorted_rows: the rows that match are few, so they are found first and then sorted. Otherwise PostgreSQL may read
            the whole table in the order of time to find them.
    """

    columns: tuple[str, ...]
    newest_first: bool
    sorted_rows: bool = False

    @property
    def order_by(self) -> sql.Composed:
        """The order as SQL. An index on `ts` delivers it: rows of one instant are sorted among themselves."""
        term = "{} DESC" if self.newest_first else "{}"
        return sql.SQL(", ").join(sql.SQL(term).format(sql.Identifier(column)) for column in self.columns)

    @property
    def after(self) -> sql.Composed:
        """The condition for rows after a position. The one on `ts` alone excludes the chunks before it."""
        template = "ts <= %s AND ({}) < ({})" if self.newest_first else "ts >= %s AND ({}) > ({})"
        columns = sql.SQL(", ").join(map(sql.Identifier, self.columns))
        return sql.SQL(template).format(columns, sql.SQL(", ").join([sql.Placeholder()] * len(self.columns)))

    def parse(self, values: Sequence[Value]) -> tuple[Any, ...]:
        """Return the position that a cursor has.

        Raises:
            ValueError: the values are not of these columns.
        """
        ts, *others = values
        if len(values) != len(self.columns) or None in others:
            raise ValueError("not a position")
        return (parse_time(ts), *others)


NEWEST_FIRST = Order(columns=("ts", "trace_id", "span_id"), newest_first=True)
OF_TRACE = Order(columns=("ts", "span_id"), newest_first=False, sorted_rows=True)


@dataclass(kw_only=True)
class Page:
    """Some spans of a list.

    Attributes:
        keys: `trace_id`, `span_id` and `ts` of each span.
        items: each span as a JSON object.
        position: of the last span, if more follow.
    """

    keys: list[tuple[str, str, datetime]] = field(default_factory=list)
    items: list[bytes] = field(default_factory=list)
    position: tuple[Any, ...] | None = None

    def body(self, duplicates: "Duplicates") -> list[bytes]:
        """Return the items with the mark of duplicates."""
        # The objects are complete before their marks can be read, so the mark replaces the closing brace.
        marks = (b"true}" if duplicates.contains(*key) else b"false}" for key in self.keys)
        return [item[:-1] + b',"duplicate":' + mark for item, mark in zip(self.items, marks, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Spans that are stored with more than one time.

    Attributes:
        first: the earliest time of each, by `trace_id` and `span_id`.
        count: number of spans that are not the earliest.
    """

    first: Mapping[tuple[str, str], datetime]
    count: int

    def contains(self, trace_id: str, span_id: str, ts: datetime) -> bool:
        """Return whether the same span is also stored with an earlier time."""
        return self.first.get((trace_id, span_id), ts) < ts


async def select_page(
    connection: Connection,
    *,
    where: Mapping[str, str],
    order: Order,
    limit: int,
    after: tuple[Any, ...] | None,
    download: Download,
) -> Page:
    """Read the page of at most `limit` spans whose columns have the given values.

    Args:
        connection: in autocommit mode.
        where: values by column.
        order: of the list.
        limit: highest number of spans.
        after: position of the last span of the page before; None for the first page.
        download: accounts for the memory of the page, which ends where no more fits.

    Raises:
        TooManyRequests: not even one span fits.
    """
    conditions = [sql.SQL("{} = %s").format(sql.Identifier(column)) for column in where]
    parameters: list[Any] = list(where.values())
    if after:
        conditions.append(order.after)
        parameters += [after[0], *after]
    # OFFSET 0 separates finding the rows from sorting them.
    template = "(SELECT {columns} FROM {table} {where} OFFSET 0)" if order.sorted_rows else "{table} {where}"
    source = sql.SQL(template).format(
        columns=TRACES.column_list,
        table=TRACES.identifier,
        where=sql.SQL("WHERE ") + sql.SQL(" AND ").join(conditions) if conditions else sql.SQL(""),
    )
    query = sql.SQL("SELECT {columns} FROM {source} ORDER BY {order} LIMIT %s").format(
        columns=TRACES.column_list, source=source, order=order.order_by
    )
    async with connection.cursor(row_factory=dict_row) as cursor:
        # JSON has only doubles, and a double represents the 12 digits of numeric(12,8) exactly.
        cursor.adapters.register_loader("numeric", FloatLoader)
        # One more than the limit: its presence means that another page follows.
        found = cast("AsyncGenerator[dict[str, Any]]", cursor.stream(query, [*parameters, limit + 1]))
        async with aclosing(found) as rows:
            return await _fill(rows, order, limit, download)


async def _fill(rows: AsyncIterator[dict[str, Any]], order: Order, limit: int, download: Download) -> Page:
    page, size, last = Page(), 0, None
    async for row in rows:
        if len(page.items) == limit:
            page.position = last
            continue  # this was the last row: to stop before the end of a result takes another connection
        encoded = to_json(row)
        size += len(encoded)
        if page.items and (size > MAX_PAGE_BYTES or not download.fits(len(encoded))):
            page.position = last
            break
        download.grow(len(encoded))
        page.items.append(encoded)
        page.keys.append((row["trace_id"], row["span_id"], row["ts"]))
        last = tuple(row[column] for column in order.columns)
    return page


async def duplicates_of_trace(connection: Connection, trace_id: str) -> Duplicates:
    """Find the spans of a trace that are stored with several times, by the primary key alone."""
    query = sql.SQL(
        "SELECT trace_id, span_id, min(ts), count(*) FROM {table} WHERE trace_id = %s GROUP BY 1, 2 HAVING count(*) > 1"
    )
    rows = await (await connection.execute(query.format(table=TRACES.identifier), [trace_id])).fetchall()
    return Duplicates(
        first={(trace, span): first for trace, span, first, _ in rows},
        count=sum(times - 1 for *_, times in rows),
    )


async def duplicates_of_page(connection: Connection, page: Page) -> Duplicates:
    """Find the spans of a page that are stored with several times on their day (UTC) or on the day before.

    A day is a chunk: the limit keeps the cost at two lookups for each span, whatever is stored.
    """
    by_day: dict[datetime, list[tuple[str, str]]] = {}
    for trace_id, span_id, ts in page.keys:
        day = ts.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        by_day.setdefault(day, []).append((trace_id, span_id))
    if not by_day:
        return Duplicates(first={}, count=0)
    of_day = sql.SQL(
        "SELECT trace_id, span_id, min(ts), count(*) FROM {table} "
        "WHERE trace_id = ANY(%s) AND span_id = ANY(%s) AND ts >= %s AND ts < %s GROUP BY 1, 2 HAVING count(*) > 1"
    ).format(table=TRACES.identifier)
    parameters: list[Any] = []
    for day, spans in by_day.items():
        parameters += [_unique(trace for trace, _ in spans), _unique(span for _, span in spans), day - _DAY, day + _DAY]
    cursor = await connection.execute(sql.SQL(" UNION ALL ").join([of_day] * len(by_day)), parameters)
    first: dict[tuple[str, str], datetime] = {}
    for trace_id, span_id, earliest, _ in await cursor.fetchall():
        first[trace_id, span_id] = min(earliest, first.get((trace_id, span_id), earliest))
    return Duplicates(first=first, count=sum(key[:2] in first and key[2] > first[key[:2]] for key in page.keys))


def _unique(texts: Iterable[str]) -> list[str]:
    return sorted(set(texts))
