"""Costs by the hour, out of the aggregate `cost_analysis_hourly`. Knows no HTTP."""

from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.numeric import FloatLoader

SCHEMA_VERSION = 4
"""The migration that makes the aggregate; a release that works with older schemas has no costs there."""
MAX_COSTS = 10_000  # rows of one answer, about 3 MB

_QUERY = """
SELECT bucket, provider, model, environment, user_id, request_count::bigint, total_cost_usd, prompt_cost_usd,
       completion_cost_usd, total_tokens::bigint
FROM cost_analysis_hourly
WHERE bucket >= %(start)s AND bucket < %(end)s
ORDER BY bucket, provider, model, environment, user_id
LIMIT %(limit)s
"""


async def select_costs(
    connection: psycopg.AsyncConnection[Any], *, start: datetime, end: datetime
) -> list[dict[str, Any]]:
    """Read the buckets that begin in a period, oldest first; one row more than `MAX_COSTS` says that there are more."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        cursor.adapters.register_loader("numeric", FloatLoader)
        await cursor.execute(_QUERY, {"start": start, "end": end, "limit": MAX_COSTS + 1})
        return await cursor.fetchall()
