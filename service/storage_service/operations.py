"""The list of endpoints, and the OpenAPI document that is generated from it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .api import Api
from .auth import Scope
from .contract import (
    Accepted,
    CostList,
    CostQuery,
    Health,
    LogBatch,
    MeasurementBatch,
    SpanList,
    SpanQuery,
    Status,
    TraceBatch,
    TraceQuery,
    WriteQuery,
)
from .problems import ProblemDocument
from .release import RELEASE
from .traces import Trace

REFERENCE = "#/components/schemas/{model}"

_RETRY_AFTER = ("Retry-After", "seconds to wait before the next attempt", {"type": "integer", "minimum": 1})
_CHALLENGE = ("WWW-Authenticate", "challenge of RFC 6750", {"type": "string"})
_HEADERS: Mapping[HTTPStatus, tuple[str, str, dict[str, Any]]] = {
    HTTPStatus.UNAUTHORIZED: _CHALLENGE,
    HTTPStatus.FORBIDDEN: _CHALLENGE,
    HTTPStatus.TOO_MANY_REQUESTS: _RETRY_AFTER,
    HTTPStatus.SERVICE_UNAVAILABLE: _RETRY_AFTER,
}

Handler = Callable[[Request], Awaitable[Response]]
References = Mapping[tuple[Any, JsonSchemaMode], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One endpoint.

    Attributes:
        method: HTTP method.
        path: path with its parameters in braces.
        handler: function that handles the request.
        summary: one line of documentation.
        scope: scope that the API key needs; None if the endpoint needs no key.
        request: model of the JSON body.
        query: model of the query parameters.
        response: model of the response; None for text.
        media_type: media type of the response.
        status: status of a successful response.
        partial_status: status of a response of the same form when only a part succeeded; None if that cannot be.
        errors: statuses of problem responses.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    scope: Scope | None = None
    request: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    response: type[BaseModel] | None = None
    media_type: str = "application/json"
    status: int = 200
    partial_status: int | None = None
    errors: tuple[int, ...] = ()

    @property
    def route(self) -> Route:
        """The route in the form of Starlette."""
        return Route(self.path, self.handler, methods=[self.method])


def operations(api: Api) -> tuple[Operation, ...]:
    """Return every endpoint except the OpenAPI document itself."""
    keyed = (400, 401, 403, 429, 503)
    written = (*keyed, 408, 413, 415)
    return (
        Operation(
            method="POST", path="/v1/traces", handler=api.post_traces, scope="write",
            summary="Store up to 1,000 spans; responds after the commit, a repeated span updates the stored one",
            request=TraceBatch, query=WriteQuery, response=Accepted, status=201, partial_status=207, errors=written,
        ),
        Operation(
            method="POST", path="/v1/metrics", handler=api.post_metrics, scope="write",
            summary="Store up to 1,000 metrics; responds after the commit, a repeated metric is stored again",
            request=MeasurementBatch, query=WriteQuery, response=Accepted, status=201, partial_status=207,
            errors=written,
        ),
        Operation(
            method="POST", path="/v1/logs", handler=api.post_logs, scope="write",
            summary="Store up to 1,000 log lines; responds after the commit, a repeated line is stored again",
            request=LogBatch, query=WriteQuery, response=Accepted, status=201, partial_status=207, errors=written,
        ),
        Operation(
            method="GET", path="/v1/traces", handler=api.reads.list_traces, scope="read", query=TraceQuery,
            summary="Return spans, newest first, page by page", response=SpanList, errors=keyed,
        ),
        Operation(
            method="GET", path="/v1/traces/{trace_id}", handler=api.reads.get_trace, scope="read", query=SpanQuery,
            summary="Return the spans of one trace, oldest first, page by page",
            response=SpanList, errors=(*keyed, 404),
        ),
        Operation(
            method="GET", path="/v1/costs", handler=api.reads.get_costs, scope="read", query=CostQuery,
            summary="Return costs by time and group, oldest first, page by page; needs schema version 4",
            response=CostList, errors=keyed,
        ),
        Operation(
            method="GET", path="/health", handler=api.health, response=Health, errors=(503,),
            summary="Return the state of this instance and the result of each check",
        ),
        Operation(
            method="GET", path="/health/live", handler=api.live, response=Status,
            summary="Return success while the process runs",
        ),
        Operation(
            method="GET", path="/health/ready", handler=api.ready, response=Status, errors=(503,),
            summary="Return whether the balancer may send requests",
        ),
        Operation(
            method="GET", path="/metrics", handler=api.metrics, summary="Return metrics in Prometheus' text format",
            media_type="text/plain",
        ),
    )  # fmt: skip


def openapi(listed: Sequence[Operation]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(ProblemDocument, "serialization")]
    for operation in listed:
        models += [(operation.request, "validation")] if operation.request else []
        models += [(operation.response, "serialization")] if operation.response else []
    references, definitions = models_json_schema(list(dict.fromkeys(models)), ref_template=REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for operation in listed:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "LLM Observatory storage service", "version": RELEASE.version.removeprefix("v")},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _describe(operation: Operation, references: References) -> dict[str, Any]:
    described: dict[str, Any] = {"summary": operation.summary, "operationId": operation.handler.__name__}
    if operation.scope:
        described["security"] = [{"key": []}]
        described["description"] = f"The key needs the scope `{operation.scope}`."
    if parameters := [*_path_parameters(operation), *_query_parameters(operation)]:
        described["parameters"] = parameters
    if operation.request:
        schema = references[operation.request, "validation"]
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    described["responses"] = _responses(operation, references)
    return described


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    if "{trace_id}" not in operation.path:
        return []
    schema = Trace.model_json_schema()["properties"]["trace_id"]
    return [{"name": "trace_id", "in": "path", "required": True, "schema": schema}]


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    schema = operation.query.model_json_schema()
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _without_null(described)}
        for name, described in schema["properties"].items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an optional parameter, which may be absent but not null."""
    if "anyOf" not in schema:
        return schema
    (described,) = (option for option in schema["anyOf"] if option != {"type": "null"})
    return dict(described)


def _responses(operation: Operation, references: References) -> dict[str, Any]:
    success: dict[str, Any] = {"schema": {"type": "string"}}
    if operation.response:
        success = {"schema": references[operation.response, "serialization"]}
    content = {operation.media_type: success}
    problem = {"application/problem+json": {"schema": references[ProblemDocument, "serialization"]}}
    # The 503 of an endpoint without a key has the form of its success: the state of the instance.
    failure = problem if operation.scope else content
    successful = [status for status in (operation.status, operation.partial_status) if status]
    return {
        **{str(status): {"description": HTTPStatus(status).phrase, "content": content} for status in successful},
        **{
            str(status): _failure(HTTPStatus(status), failure, keyed=bool(operation.scope))
            for status in operation.errors
        },
    }


def _failure(status: HTTPStatus, content: Mapping[str, Any], *, keyed: bool) -> dict[str, Any]:
    described: dict[str, Any] = {"description": status.phrase, "content": content}
    if keyed and status in _HEADERS:
        name, meaning, schema = _HEADERS[status]
        described["headers"] = {name: {"description": meaning, "schema": schema}}
    return described
