"""The HTTP handlers of writes and of the instance's state.

Owns the handling of requests and responses. `reads` has the handlers of reads, `operations` lists the endpoints and
their documentation, `app` wires them.
"""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Literal

import prometheus_client
from starlette.requests import Request
from starlette.responses import Response

from .auth import ApiKey, Authenticator, Scope
from .bodies import Uploads, encoding_of, expanded, paced
from .buffer import WriteBuffer
from .cache import Cache
from .contract import Accepted, Check, Health, ItemResult, Status, WriteQuery
from .database import Database
from .fairness import FairShare
from .items import Batch, Item, Window
from .key_usage import KeyUsage
from .lifecycle import Lifecycle, Phase
from .log_entries import LOG_ENTRIES, LogEntry
from .measurements import MEASUREMENTS, Measurement
from .metrics import Metrics
from .problems import CLOSE, FieldError, Unavailable
from .rate_limits import RateLimiter
from .reads import Reads
from .release import RELEASE
from .responses import json_response, parameters
from .sending import Downloads
from .settings import Settings
from .traces import TRACES, Trace


class Api:
    """The handlers of one process and their shared state."""

    def __init__(
        self,
        settings: Settings,
        *,
        database: Database,
        cache: Cache,
        key_usage: KeyUsage,
        metrics: Metrics,
        lifecycle: Lifecycle,
    ) -> None:
        self._settings = settings
        self._database = database
        self._cache = cache
        self._key_usage = key_usage
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._authenticator = Authenticator(database)
        self._rate_limiter = RateLimiter()
        self._traces, self._measurements, self._log_entries = (
            WriteBuffer(settings, table=table, database=database, metrics=metrics)
            for table in (TRACES, MEASUREMENTS, LOG_ENTRIES)
        )
        self._uploads = Uploads(settings, metrics=metrics)
        self._downloads = Downloads(settings, metrics=metrics)
        self._writes = FairShare(settings.max_pending_writes)
        self.reads = Reads(
            database=database, cache=cache, metrics=metrics, downloads=self._downloads, authorize=self._authorize
        )

    async def post_traces(self, request: Request) -> Response:
        """Store a batch of traces."""
        batch, response = await self._ingest(request, Trace, self._traces, max_age_days=self._settings.max_age_days)
        await self._cache.forget_traces({item.trace_id for item in batch.items})
        return response

    async def post_metrics(self, request: Request) -> Response:
        """Store a batch of metrics."""
        days = self._settings.max_age_days_telemetry
        _, response = await self._ingest(request, Measurement, self._measurements, max_age_days=days)
        return response

    async def post_logs(self, request: Request) -> Response:
        """Store a batch of logs."""
        days = self._settings.max_age_days_telemetry
        _, response = await self._ingest(request, LogEntry, self._log_entries, max_age_days=days)
        return response

    async def _ingest(
        self, request: Request, model: type[Item], buffer: WriteBuffer, *, max_age_days: int
    ) -> tuple[Batch[Item], Response]:
        """Store the items of a request; returns them and the response, which does not depend on the commit."""
        key = await self._authorize(request, "write")
        encoding = encoding_of(request)
        partial = parameters(request, WriteQuery).results is not None
        download = self._downloads.begin(request, key) if partial else None
        with self._uploads.upload(key) as upload:
            body = await upload.receive(request)
            with self._admitted(key):
                async with self._uploads.turn(key, len(body)):
                    text = await expanded(body, encoding, upload)
                    window, limit = self._window(max_age_days), self._settings.max_text_bytes
                    batch = Batch(text, model, window, max_text_bytes=limit, partial=partial)
                    async for _ in paced(batch.steps()):
                        pass
                items = batch.accepted()
                response = _accepted(batch, partial=partial)
                if download:
                    download.grow(len(response.body))
                with self._metrics.write(buffer.table.name):
                    await buffer.write(items, key=key)
        self._metrics.items.labels(buffer.table.name).inc(len(items))
        return batch, response

    async def health(self, _request: Request) -> Response:
        """Return the state of this instance with the result of each check."""
        health = self._health()
        return json_response(health, status=200 if health.status == "ok" else 503)

    async def live(self, _request: Request) -> Response:
        """Return success while the process runs. The database is not checked: a restart would not repair it."""
        return json_response(Status(status="ok"))

    async def ready(self, _request: Request) -> Response:
        """Return whether the balancer may send requests."""
        status = self._health().status
        return json_response(Status(status=status), status=200 if status == "ok" else 503)

    async def metrics(self, _request: Request) -> Response:
        """Return the metrics in Prometheus' text format."""
        content = prometheus_client.generate_latest(self._metrics.registry)
        return Response(content, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def _authorize(self, request: Request, scope: Scope) -> str:
        """Return the id of the request's key, which has the scope."""
        if self._lifecycle.phase is Phase.DRAINING:
            raise Unavailable("this instance is shutting down; send the request again", headers=CLOSE)
        key: ApiKey = await self._authenticator.authenticate(request.headers.get("authorization"))
        request.state.api_key_id = key.id
        self._key_usage.note(key.id)
        self._rate_limiter.take(key.id, limit_rpm=key.rate_limit_rpm)
        key.require(scope)
        return key.id

    @contextlib.contextmanager
    def _admitted(self, key: str) -> Iterator[None]:
        """Limit the number of writes whose body is complete."""
        if not self._writes.fits(key):
            raise Unavailable(f"{self._writes.held} writes are in progress, which is the limit; send the request again")
        with self._writes.holding(key), self._metrics.pending_writes.track_inprogress():
            yield

    def _window(self, max_age_days: int) -> Window:
        now = datetime.now(UTC)
        return Window(
            earliest=now - timedelta(days=max_age_days),
            latest=now + timedelta(seconds=self._settings.max_future_seconds),
        )

    def _health(self) -> Health:
        condition = self._database.condition
        checks = {
            "database": Check(status="ok") if condition.reachable else Check(status="failed", detail=condition.detail),
            "schema": Check(status="ok" if condition.usable else "failed", detail=condition.detail),
        }
        if self._cache.condition is not None:
            # Reported, but not part of the status: without the cache the service is slower, not wrong.
            checks["cache"] = Check(status="failed" if self._cache.condition else "ok", detail=self._cache.condition)
        status: Literal["ok", "failed", "draining"] = "ok" if condition.usable else "failed"
        if self._lifecycle.phase is not Phase.SERVING:
            status = "draining"
        return Health(status=status, version=RELEASE.version, fleet=self._settings.fleet, checks=checks)


def _accepted(batch: Batch[Item], *, partial: bool) -> Response:
    accepted = len(batch.items)
    if not partial:
        return json_response({"accepted": accepted}, status=HTTPStatus.CREATED)
    results = [_result(errors) for errors in batch.results()]
    document = Accepted(accepted=accepted, rejected=batch.number - accepted, items=results)
    status = HTTPStatus.MULTI_STATUS if document.rejected else HTTPStatus.CREATED
    return json_response(document.model_dump(exclude_none=True), status=status)


def _result(errors: list[FieldError]) -> ItemResult:
    return ItemResult(status="rejected" if errors else "accepted", errors=errors or None)
