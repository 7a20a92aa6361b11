"""The HTTP handlers: what each endpoint does.

Owns requests and answers. The list of endpoints with what they document is in `operations`, the wiring in `app`.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import prometheus_client
from psycopg import sql
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from .auth import ApiKey, Authenticator, Scope
from .database import Database
from .fields import Identifier, Name
from .items import MAX_ITEMS, Window, field_errors, parse_batch
from .lifecycle import Lifecycle, Phase
from .metrics import Metrics
from .problems import (
    ContentTooLarge,
    FieldError,
    InvalidRequest,
    NotFound,
    RequestTimeout,
    Unavailable,
    UnsupportedMediaType,
)
from .release import RELEASE
from .settings import Settings
from .tables import select, store
from .traces import TRACES, Trace

MAX_BODY_BYTES = 16 * 1024 * 1024
BODY_TIMEOUT_S = 30
MAX_SPANS = 1000  # of one trace, in one answer
NEWEST_FIRST = sql.SQL("ts DESC")
OLDEST_FIRST = sql.SQL("ts, span_id")


class TraceBatch(BaseModel):
    """Body of a write."""

    items: Annotated[list[Trace], Field(max_length=MAX_ITEMS)]


class Accepted(BaseModel):
    """Answer to a write: all items are committed."""

    accepted: int


class TraceList(BaseModel):
    """Traces that were asked for."""

    items: list[Trace]


class TraceQuery(BaseModel):
    """Parameters of a search for traces."""

    model_config = ConfigDict(extra="forbid")

    provider: Name | None = None
    model: Name | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class Check(BaseModel):
    """One thing that readiness depends on."""

    status: Literal["ok", "failed"]
    detail: str = ""


class Health(BaseModel):
    """State of this instance."""

    status: Literal["ok", "failed", "draining"]
    version: str
    fleet: str
    checks: dict[str, Check]


_TRACE_ID: TypeAdapter[str] = TypeAdapter(Identifier)


class Api:
    """Handlers of one process, and what they share."""

    def __init__(self, settings: Settings, *, database: Database, metrics: Metrics, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._database = database
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._authenticator = Authenticator(database)
        self._pending_writes = 0

    async def post_traces(self, request: Request) -> Response:
        """Store a batch of traces."""
        await self._authorize(request, "write")
        with self._admitted():
            items = parse_batch(await read_json_body(request), Trace, self._window())
            with self._metrics.write(TRACES.name):
                async with self._database.connection() as connection:
                    await store(connection, TRACES, TRACES.rows(items))
        self._metrics.items.labels(TRACES.name).inc(len(items))
        return json_response(Accepted(accepted=len(items)), status=201)

    async def get_trace(self, request: Request) -> Response:
        """Return the spans of one trace, oldest first."""
        await self._authorize(request, "read")
        try:
            trace_id = _TRACE_ID.validate_python(request.path_params["trace_id"])
        except ValidationError as error:
            raise InvalidRequest([FieldError(field="trace_id", reason=error.errors()[0]["msg"])]) from None
        spans = await self._select("trace", {"trace_id": trace_id}, order_by=OLDEST_FIRST, limit=MAX_SPANS)
        if not spans:
            raise NotFound(f"no trace {trace_id!r} is stored")
        return json_response({"items": spans})

    async def list_traces(self, request: Request) -> Response:
        """Return traces, newest first."""
        await self._authorize(request, "read")
        try:
            query = TraceQuery.model_validate(dict(request.query_params))
        except ValidationError as error:
            raise InvalidRequest(list(field_errors(error))) from None
        where = query.model_dump(include={"provider", "model"}, exclude_none=True)
        return json_response({"items": await self._select("traces", where, order_by=NEWEST_FIRST, limit=query.limit)})

    async def health(self, _request: Request) -> Response:
        """Say how this instance is, and why."""
        health = self._health()
        return json_response(health, status=200 if health.status == "ok" else 503)

    async def live(self, _request: Request) -> Response:
        """Say that the process runs; says nothing about the database, which a restart would not heal."""
        return json_response({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        """Say whether the balancer may send requests."""
        status = self._health().status
        return json_response({"status": status}, status=200 if status == "ok" else 503)

    async def metrics(self, _request: Request) -> Response:
        """Return the metrics in Prometheus' text format."""
        content = prometheus_client.generate_latest(self._metrics.registry)
        return Response(content, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def _authorize(self, request: Request, scope: Scope) -> None:
        if self._lifecycle.phase is Phase.DRAINING:
            raise Unavailable("this instance is stopping; try again", headers=CLOSE)
        key: ApiKey = await self._authenticator.authenticate(request.headers.get("authorization"))
        request.state.api_key_id = key.id
        key.require(scope)

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[None]:
        """Bound the bodies in memory, before they are read."""
        if self._pending_writes >= self._settings.max_pending_writes:
            raise Unavailable(f"{self._pending_writes} writes are in work already; try again")
        self._pending_writes += 1
        try:
            with self._metrics.pending_writes.track_inprogress():
                yield
        finally:
            self._pending_writes -= 1

    def _window(self) -> Window:
        now = datetime.now(UTC)
        return Window(
            earliest=now - timedelta(days=self._settings.max_age_days),
            latest=now + timedelta(seconds=self._settings.max_future_seconds),
        )

    async def _select(
        self, query: str, where: dict[str, object], *, order_by: sql.SQL, limit: int
    ) -> list[dict[str, Any]]:
        with self._metrics.query_duration.labels(query).time():
            async with self._database.connection() as connection:
                return await select(connection, TRACES, where=where, order_by=order_by, limit=limit)

    def _health(self) -> Health:
        condition = self._database.condition
        checks = {
            "database": Check(status="ok") if condition.reachable else Check(status="failed", detail=condition.detail),
            "schema": Check(status="ok" if condition.usable else "failed", detail=condition.detail),
        }
        status: Literal["ok", "failed", "draining"] = "ok" if condition.usable else "failed"
        if self._lifecycle.phase is not Phase.SERVING:
            status = "draining"
        return Health(status=status, version=RELEASE.version, fleet=self._settings.fleet, checks=checks)


async def read_json_body(request: Request) -> bytes:
    """Read a body of bounded size in bounded time.

    Raises:
        UnsupportedMediaType: it is not declared to be plain JSON.
        ContentTooLarge: it has more than `MAX_BODY_BYTES`.
        RequestTimeout: it did not arrive within `BODY_TIMEOUT_S`.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("expected Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("expected a body without Content-Encoding")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise _too_many_bytes()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read_bounded(request)
    except TimeoutError:
        raise RequestTimeout(f"the body did not arrive within {BODY_TIMEOUT_S} s", headers=CLOSE) from None


async def _read_bounded(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _too_many_bytes()
    return bytes(body)


CLOSE = {"Connection": "close"}


def _too_many_bytes() -> ContentTooLarge:
    return ContentTooLarge(f"the body has more than {MAX_BODY_BYTES} bytes: send the items in several requests")


def json_response(content: object, *, status: int = 200) -> Response:
    """Return an answer in JSON; models and rows may hold datetimes."""
    return Response(to_json(content), status, media_type="application/json")
