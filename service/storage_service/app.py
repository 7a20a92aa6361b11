"""The ASGI application: endpoints, error handlers, and the log line and metrics of each request."""

import contextlib
import logging
import time
from collections.abc import AsyncIterator

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api import Api
from .cache import Cache
from .database import Database
from .key_usage import KeyUsage
from .lifecycle import Lifecycle
from .metrics import Metrics
from .operations import openapi, operations
from .problems import Problem, on_failure, on_http_exception, on_problem
from .sending import ResponseNotReadError, Sending
from .settings import Settings

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CLIENT_CLOSED_REQUEST = 499
"""nginx's status of a closed connection, also if the client does not read; it appears in metrics and logs only."""

log = logging.getLogger(__name__)


def create_app(settings: Settings, *, lifecycle: Lifecycle) -> ASGIApp:
    """Create the application; its lifespan opens and closes database, cache and key usage."""
    database = Database(settings)
    metrics = Metrics(fleet=settings.fleet)
    metrics.pool_in_use.set_function(database.connections_in_use)
    metrics.pool_capacity.set(settings.pool_max)
    cache = Cache(settings, metrics=metrics)
    key_usage = KeyUsage(database)
    api = Api(settings, database=database, cache=cache, key_usage=key_usage, metrics=metrics, lifecycle=lifecycle)
    listed = operations(api)
    document = to_json(openapi(listed))  # once: it needs no key, so it must cost nothing

    async def openapi_json(_request: Request) -> Response:
        return Response(document, media_type="application/json")

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await database.open()
        await cache.open()
        await key_usage.open()
        yield
        await key_usage.close()
        await cache.close()
        await database.close()

    app = Starlette(
        routes=[*(operation.route for operation in listed), Route("/openapi.json", openapi_json)],
        exception_handlers={
            Problem: on_problem,
            HTTPException: on_http_exception,
            ClientDisconnect: _on_disconnect,
            Exception: on_failure,
        },
        lifespan=lifespan,
    )
    # Behind a balancer that ends TLS, a redirect to the path without the slash would lead to clear text.
    app.router.redirect_slashes = False
    return Observed(Sending(app, settings), metrics=metrics, lifecycle=lifecycle)


async def _on_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


class Observed:
    """Counts, measures and logs every request."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, lifecycle: Lifecycle) -> None:
        self._app = app
        self._metrics = metrics
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = time.perf_counter()

        async def send_and_record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with self._lifecycle.request():
                await self._app(scope, receive, send_and_record_status)
        except ResponseNotReadError:
            status = CLIENT_CLOSED_REQUEST
        finally:
            self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, duration: float) -> None:
        # The client chooses path and method, so neither becomes a label as it is: labels must have few values.
        route = scope["route"].path if "route" in scope else "unmatched"
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.request_duration.labels(route).observe(duration)
        fields = {"method": method, "route": route, "status": status, "duration_ms": round(duration * 1000, 1)}
        if key := scope.get("state", {}).get("api_key_id"):
            fields["api_key_id"] = key
        log.log(logging.INFO if route.startswith("/v1/") else logging.DEBUG, "request", extra={"fields": fields})
