"""Costs by time and group, page by page. Independent of HTTP.

Finished hours come from the aggregate `cost_analysis_hourly`. The hours that it does not have yet, which are the
current one and up to two before it, are computed from the traces. So the costs of a period are complete whenever they
are read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.numeric import FloatLoader

from .cursors import Value, parse_time

SCHEMA_VERSION = 4
"""The migration that creates the aggregate; costs are not available on older schemas."""
MAX_COSTS = 10_000  # rows of one page, about 3 MB

Bucket = Literal["hour", "day", "total"]
Dimension = Literal["provider", "model", "environment", "user_id"]
DIMENSIONS: tuple[Dimension, ...] = ("provider", "model", "environment", "user_id")
_NULLABLE = frozenset({"environment", "user_id"})
Connection = psycopg.AsyncConnection[Any]
Position = tuple[Any, ...]

_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)
_LAST_HOUR = datetime(9999, 12, 31, 23, tzinfo=UTC)  # that Python can represent
_BUCKETS: dict[Bucket, sql.SQL] = {
    "hour": sql.SQL("bucket"),
    "day": sql.SQL("time_bucket('1 day', bucket)"),
    "total": sql.SQL("%(from)s::timestamptz"),
}
# A refresh by hand may have stored a part of an hour. Only those that the job refreshes are read from the aggregate.
_MATERIALIZED = """
SELECT least(max(bucket) + interval '1 hour', date_trunc('hour', now() - interval '1 hour', 'UTC')) AS until
FROM cost_analysis_hourly
"""
_QUERY = """
WITH hours AS (
    SELECT bucket, provider, model, environment, user_id, request_count, total_cost_usd, prompt_cost_usd,
           completion_cost_usd, total_tokens
    FROM cost_analysis_hourly
    WHERE bucket >= %(start)s AND bucket < %(materialized)s
    UNION ALL
    SELECT time_bucket('1 hour', ts), provider, model, environment, user_id, count(*), sum(total_cost_usd),
           sum(prompt_cost_usd), sum(completion_cost_usd), sum(total_tokens)
    FROM llm_traces
    WHERE ts >= %(materialized)s AND ts < %(end)s
    GROUP BY 1, 2, 3, 4, 5
), costs AS (
    SELECT {columns}, sum(request_count)::bigint AS request_count, sum(total_cost_usd) AS total_cost_usd,
           sum(prompt_cost_usd) AS prompt_cost_usd, sum(completion_cost_usd) AS completion_cost_usd,
           sum(total_tokens)::bigint AS total_tokens
    FROM hours
    GROUP BY {groups}
)
SELECT * FROM costs {after} ORDER BY {order} LIMIT %(limit)s
"""


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """What one row of costs is the sum of.

    Attributes:
        bucket: length of its time.
        dimensions: columns whose values its traces have in common.
    """

    bucket: Bucket
    dimensions: tuple[Dimension, ...]

    def position(self, row: dict[str, Any]) -> tuple[Value, ...]:
        """Return what identifies a row among the costs of a period."""
        return (row["bucket"].isoformat(), *(row[dimension] for dimension in self.dimensions))

    def parse(self, values: Sequence[Value]) -> Position:
        """Return the position that a cursor has.

        Raises:
            ValueError: the values are not of this grouping.
        """
        named = dict(zip(("bucket", *self.dimensions), values, strict=True))
        if any(value is None and name not in _NULLABLE for name, value in named.items()):
            raise ValueError("not a position")
        return (parse_time(values[0]), *values[1:])

    def query(self, after: Position | None) -> sql.Composed:
        """Return the query of a page; its parameters are named, those of `after` by their column."""
        dimensions = [sql.Identifier(dimension) for dimension in self.dimensions]
        terms: list[sql.Composable] = [sql.Identifier("bucket")]
        values: list[sql.Composable] = [sql.SQL("%(after_bucket)s::timestamptz")]
        for dimension in self.dimensions:
            terms += _ordered(dimension, sql.Identifier(dimension))
            values += _ordered(dimension, sql.SQL("{}::text").format(sql.Placeholder(f"after_{dimension}")))
        order = sql.SQL(", ").join(terms)
        return sql.SQL(_QUERY).format(
            columns=sql.SQL(", ").join([sql.SQL("{} AS bucket").format(_BUCKETS[self.bucket]), *dimensions]),
            groups=sql.SQL(", ").join(sql.Literal(number) for number in range(1, 2 + len(dimensions))),
            after=sql.SQL("WHERE ({}) > ({})").format(order, sql.SQL(", ").join(values)) if after else sql.SQL(""),
            order=order,
        )

    def periods(self, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
        """Yield the parts of a period that are read one after the other, until a page is full.

        The first one is a day and each one is twice as long as the one before. So a page reads about what it returns,
        and a long period with few costs takes few queries.
        """
        days = 1
        while start < end:
            midnight = start.replace(hour=0)
            stop = end if self.bucket == "total" else midnight + min(days * _DAY, end - midnight)
            yield start, stop
            start, days = stop, days * 2


def _ordered(dimension: Dimension, term: sql.Composable) -> list[sql.Composable]:
    """Return terms that are never null, because a comparison of rows needs values; null comes last."""
    if dimension not in _NULLABLE:
        return [term]
    return [sql.SQL("{} IS NULL").format(term), sql.SQL("coalesce({}, '')").format(term)]


def whole_hours(start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """Return the period of the hours that begin in a period."""
    return _next_hour(start), _next_hour(end)


def _next_hour(time: datetime) -> datetime:
    hour = time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return hour if hour in {time, _LAST_HOUR} else hour + _HOUR


async def select_costs(
    connection: Connection,
    *,
    start: datetime,
    end: datetime,
    grouping: Grouping,
    limit: int,
    after: Position | None = None,
) -> tuple[list[dict[str, Any]], bool]:
    """Read a page of the costs of the hours in a period, oldest first.

    Args:
        connection: in autocommit mode.
        start: a whole hour.
        end: a whole hour.
        grouping: of the costs.
        limit: highest number of rows.
        after: position of the last row of the page before; None for the first page.

    Returns:
        The rows, and whether more follow.
    """
    rows: list[dict[str, Any]] = []
    first = start
    if after and grouping.bucket != "total":
        first = min(max(start, after[0]), end)
    async with connection.cursor(row_factory=dict_row) as cursor:
        # JSON has only doubles, and a double represents the 12 digits of numeric(12,8) exactly.
        cursor.adapters.register_loader("numeric", FloatLoader)
        found = await (await cursor.execute(_MATERIALIZED)).fetchone()
        materialized = (found and found["until"]) or first
        names = ("bucket", *grouping.dimensions)
        position = {f"after_{name}": value for name, value in zip(names, after or (), strict=False)}
        query = grouping.query(after)
        for begin, stop in grouping.periods(first, end):
            split = min(max(begin, materialized), stop)
            parameters = {"from": start, "start": begin, "end": stop, "materialized": split, **position}
            await cursor.execute(query, {**parameters, "limit": limit + 1 - len(rows)})
            rows += await cursor.fetchall()
            if len(rows) > limit:
                break
    return rows[:limit], len(rows) > limit
