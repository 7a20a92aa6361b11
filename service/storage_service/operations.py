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

from .api import Accepted, Api, Health, TraceBatch, TraceList, TraceQuery
from .auth import Scope
from .problems import ProblemDocument
from .release import RELEASE
from .traces import Trace

REFERENCE = "#/components/schemas/{model}"

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
        response: model of the answer; None for text or an answer without a model.
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
    status: int = 200
    errors: tuple[int, ...] = ()

    @property
    def route(self) -> Route:
        """The route of the framework."""
        return Route(self.path, self.handler, methods=[self.method])


def operations(api: Api) -> tuple[Operation, ...]:
    """List every endpoint but the document itself."""
    keyed = (400, 401, 403, 503)
    return (
        Operation(
            method="POST", path="/v1/traces", handler=api.post_traces, scope="write",
            summary="Store up to 1,000 traces; answered after the commit, a repeated span counts as accepted",
            request=TraceBatch, response=Accepted, status=201, errors=(*keyed, 408, 413, 415),
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
            method="GET", path="/health", handler=api.health, summary="How this instance is, and why",
            response=Health, errors=(503,),
        ),
        Operation(method="GET", path="/health/live", handler=api.live, summary="Whether the process runs"),
        Operation(
            method="GET", path="/health/ready", handler=api.ready, summary="Whether the balancer may send requests",
            errors=(503,),
        ),
        Operation(method="GET", path="/metrics", handler=api.metrics, summary="Metrics in Prometheus' text format"),
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
    properties = operation.query.model_json_schema()["properties"] if operation.query else {}
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]


def _responses(operation: Operation, references: References) -> dict[str, Any]:
    success: dict[str, Any] = {"description": HTTPStatus(operation.status).phrase}
    if operation.response:
        schema = references[operation.response, "serialization"]
        success["content"] = {"application/json": {"schema": schema}}
    problem = {"application/problem+json": {"schema": references[ProblemDocument, "serialization"]}}
    refusals = {
        str(status): {"description": HTTPStatus(status).phrase, "content": problem} for status in operation.errors
    }
    return {str(operation.status): success, **refusals}
