"""Hourly costs from the aggregate `cost_analysis_hourly`. Independent of HTTP."""

from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.numeric import FloatLoader

SCHEMA_VERSION = 4
"""The migration that creates the aggregate; costs are not available on older schemas."""
MAX_COSTS = 10_000  # rows of one response, about 3 MB

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
    """Read the buckets that begin in a period, oldest first; `MAX_COSTS` + 1 rows mean that there are more."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        cursor.adapters.register_loader("numeric", FloatLoader)
        await cursor.execute(_QUERY, {"start": start, "end": end, "limit": MAX_COSTS + 1})
        return await cursor.fetchall()
