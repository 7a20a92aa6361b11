"""The HTTP handlers of reads: spans and costs, page by page."""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from . import cursors
from .auth import Scope
from .cache import MAX_VALUE_BYTES, Cache
from .contract import CostQuery, SpanQuery, TraceQuery
from .costs import SCHEMA_VERSION, Grouping, select_costs, whole_hours
from .database import Database
from .fields import Identifier
from .items import field_errors
from .metrics import Metrics
from .problems import FieldError, InvalidRequest, NotFound, Unavailable
from .responses import PageResponse, parameters
from .sending import Download, Downloads
from .spans import NEWEST_FIRST, OF_TRACE, Order, duplicates_of_page, duplicates_of_trace, select_page

_TRACE_ID: TypeAdapter[str] = TypeAdapter(Identifier)


class Reads:
    """The handlers of reads.

    Args:
        database: connections.
        cache: of responses.
        metrics: of the queries.
        downloads: the responses in progress.
        authorize: returns the id of the request's key; raises a problem unless the key has the scope.
    """

    def __init__(
        self,
        *,
        database: Database,
        cache: Cache,
        metrics: Metrics,
        downloads: Downloads,
        authorize: Callable[[Request, Scope], Awaitable[str]],
    ) -> None:
        self._database = database
        self._cache = cache
        self._metrics = metrics
        self._downloads = downloads
        self._authorize = authorize

    async def get_trace(self, request: Request) -> Response:
        """Return the spans of one trace, oldest first."""
        key = await self._authorize(request, "read")
        trace_id = _trace_id(request)
        query = parameters(request, SpanQuery)
        download = self._downloads.begin(request, key)
        # The cache has complete traces only, so a page of one is never returned for another.
        whole = query == SpanQuery()
        cached = await self._cache.get("trace", trace_id) if whole else None
        if cached:
            return _json(cached, download)
        of = ("spans", trace_id)
        after = _position(query.cursor, of, OF_TRACE)
        with self._metrics.query_duration.labels("trace").time():
            async with self._database.reading(key) as connection:
                page = await select_page(
                    connection, where={"trace_id": trace_id}, order=OF_TRACE, limit=query.limit, after=after,
                    download=download,
                )  # fmt: skip
                duplicates = await duplicates_of_trace(connection, trace_id)
        if not page.items and after is None:
            raise NotFound(f"trace {trace_id!r} is not stored")
        following = _next(page.position, of)
        response = PageResponse(page.body(duplicates), next=following, duplicates=duplicates.count)
        if whole and following is None and cached is None and response.size <= MAX_VALUE_BYTES:
            await self._cache.put("trace", trace_id, b"".join(response.pieces()))
        return response

    async def list_traces(self, request: Request) -> Response:
        """Return spans, newest first."""
        key = await self._authorize(request, "read")
        query = parameters(request, TraceQuery)
        download = self._downloads.begin(request, key)
        where = query.model_dump(include={"provider", "model"}, exclude_none=True)
        of = ("traces", query.provider, query.model)
        after = _position(query.cursor, of, NEWEST_FIRST)
        with self._metrics.query_duration.labels("traces").time():
            async with self._database.reading(key) as connection:
                page = await select_page(
                    connection, where=where, order=NEWEST_FIRST, limit=query.limit, after=after, download=download
                )
                duplicates = await duplicates_of_page(connection, page)
        following = _next(page.position, of)
        return PageResponse(page.body(duplicates), next=following, duplicates=duplicates.count)

    async def get_costs(self, request: Request) -> Response:
        """Return costs by time and group, oldest first."""
        key = await self._authorize(request, "read")
        query = parameters(request, CostQuery)
        download = self._downloads.begin(request, key)
        version = self._database.condition.schema_version
        if version is not None and version < SCHEMA_VERSION:
            raise Unavailable(f"costs need schema version {SCHEMA_VERSION}, and the database is at {version}")
        start, end = whole_hours(query.from_, query.to)
        grouping = Grouping(bucket=query.bucket, dimensions=query.dimensions)
        of = ("costs", start, end, grouping.bucket, grouping.dimensions)
        after = cursors.decode(query.cursor, of=of, parse=grouping.parse) if query.cursor is not None else None
        # A page of its own for each set of parameters, the cursor and the limit included.
        name = hashlib.sha256(repr((of, query.limit, query.cursor)).encode()).hexdigest()
        if cached := await self._cache.get("costs", name):
            return _json(cached, download)
        with self._metrics.query_duration.labels("costs").time():
            async with self._database.reading(key) as connection:
                costs, more = await select_costs(
                    connection, start=start, end=end, grouping=grouping, limit=query.limit, after=after
                )
        following = cursors.encode(grouping.position(costs[-1]), of=of) if more else None
        body = to_json({"items": costs, "next": following})
        response = _json(body, download)
        await self._cache.put("costs", name, body)
        return response


def _json(body: bytes, download: Download) -> Response:
    download.grow(len(body))
    return Response(body, media_type="application/json")


def _trace_id(request: Request) -> str:
    try:
        return _TRACE_ID.validate_python(request.path_params["trace_id"])
    except ValidationError as error:
        reasons = [found.reason for found in field_errors(error)]
        raise InvalidRequest([FieldError(field="trace_id", reason=reason) for reason in reasons]) from None


def _position(cursor: str | None, of: tuple[object, ...], order: Order) -> tuple[Any, ...] | None:
    return None if cursor is None else cursors.decode(cursor, of=of, parse=order.parse)


def _next(position: tuple[Any, ...] | None, of: tuple[object, ...]) -> str | None:
    if position is None:
        return None
    ts, *others = position
    return cursors.encode([ts.isoformat(), *others], of=of)
