"""The list of endpoints, and the OpenAPI document that is made from it."""

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
    Status,
    TraceBatch,
    TraceList,
    TraceQuery,
)
from .problems import ProblemDocument
from .release import RELEASE
from .traces import Trace

REFERENCE = "#/components/schemas/{model}"

_COME_AGAIN = ("Retry-After", "seconds after which to try again", {"type": "integer", "minimum": 1})
_CHALLENGE = ("WWW-Authenticate", "what the key lacks, as RFC 6750 says it", {"type": "string"})
_HEADERS: Mapping[HTTPStatus, tuple[str, str, dict[str, Any]]] = {
    HTTPStatus.UNAUTHORIZED: _CHALLENGE,
    HTTPStatus.FORBIDDEN: _CHALLENGE,
    HTTPStatus.TOO_MANY_REQUESTS: _COME_AGAIN,
    HTTPStatus.SERVICE_UNAVAILABLE: _COME_AGAIN,
}

Handler = Callable[[Request], Awaitable[Response]]
References = Mapping[tuple[Any, JsonSchemaMode], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One endpoint.

    Attributes:
        method: HTTP method.
        path: path with its parameters in braces.
        handler: what answers.
        summary: one line of documentation.
        scope: scope that the API key needs; None for an endpoint without a key.
        request: model of the JSON body.
        query: model of the query parameters.
        response: model of the answer; None for text.
        media_type: of the answer.
        status: status of success.
        errors: statuses of refusals.
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
    errors: tuple[int, ...] = ()

    @property
    def route(self) -> Route:
        """The route of the framework."""
        return Route(self.path, self.handler, methods=[self.method])


def operations(api: Api) -> tuple[Operation, ...]:
    """List every endpoint but the document itself."""
    keyed = (400, 401, 403, 429, 503)
    written = (*keyed, 408, 413, 415)
    return (
        Operation(
            method="POST", path="/v1/traces", handler=api.post_traces, scope="write",
            summary="Store up to 1,000 traces; answered after the commit, a repeated span counts as accepted",
            request=TraceBatch, response=Accepted, status=201, errors=written,
        ),
        Operation(
            method="POST", path="/v1/metrics", handler=api.post_metrics, scope="write",
            summary="Store up to 1,000 metrics; answered after the commit, a repeated one is stored again",
            request=MeasurementBatch, response=Accepted, status=201, errors=written,
        ),
        Operation(
            method="POST", path="/v1/logs", handler=api.post_logs, scope="write",
            summary="Store up to 1,000 lines of logs; answered after the commit, a repeated one is stored again",
            request=LogBatch, response=Accepted, status=201, errors=written,
        ),
        Operation(
            method="GET", path="/v1/traces", handler=api.list_traces, scope="read", query=TraceQuery,
            summary="Return traces, newest first", response=TraceList, errors=keyed,
        ),
        Operation(
            method="GET", path="/v1/traces/{trace_id}", handler=api.get_trace, scope="read",
            summary="Return the spans of one trace, oldest first, up to 1,000",
            response=TraceList, errors=(*keyed, 404),
        ),
        Operation(
            method="GET", path="/v1/costs", handler=api.get_costs, scope="read", query=CostQuery,
            summary="Return costs by the hour, oldest first, up to 10,000; needs schema version 4",
            response=CostList, errors=keyed,
        ),
        Operation(
            method="GET", path="/health", handler=api.health, summary="How this instance is, and why",
            response=Health, errors=(503,),
        ),
        Operation(
            method="GET", path="/health/live", handler=api.live, summary="Whether the process runs", response=Status,
        ),
        Operation(
            method="GET", path="/health/ready", handler=api.ready, summary="Whether the balancer may send requests",
            response=Status, errors=(503,),
        ),
        Operation(
            method="GET", path="/metrics", handler=api.metrics, summary="Metrics in Prometheus' text format",
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
    """Describe an optional parameter, which can be left out but not be null."""
    if "anyOf" not in schema:
        return schema
    (described,) = (option for option in schema["anyOf"] if option != {"type": "null"})
    return dict(described)


def _responses(operation: Operation, references: References) -> dict[str, Any]:
    success: dict[str, Any] = {"schema": {"type": "string"}}
    if operation.response:
        success = {"schema": references[operation.response, "serialization"]}
    answer = {operation.media_type: success}
    problem = {"application/problem+json": {"schema": references[ProblemDocument, "serialization"]}}
    # An endpoint without a key refuses nobody: with 503 it says in its own form how the instance is.
    refusal = problem if operation.scope else answer
    return {
        str(operation.status): {"description": HTTPStatus(operation.status).phrase, "content": answer},
        **{
            str(status): _refusal(HTTPStatus(status), refusal, keyed=bool(operation.scope))
            for status in operation.errors
        },
    }


def _refusal(status: HTTPStatus, content: Mapping[str, Any], *, keyed: bool) -> dict[str, Any]:
    described: dict[str, Any] = {"description": status.phrase, "content": content}
    if keyed and status in _HEADERS:
        name, meaning, schema = _HEADERS[status]
        described["headers"] = {name: {"description": meaning, "schema": schema}}
    return described
