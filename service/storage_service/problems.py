"""Error responses, as `application/problem+json` (RFC 9457)."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MAX_ERRORS = 20  # in one response; an invalid batch can have thousands, and the first few show the cause
RETRY_AFTER_S = 1
CLOSE = {"Connection": "close"}


class FieldError(BaseModel):
    """One error of a request.

    Attributes:
        item: index in `items`, counted from 0; absent if the error is not in an item.
        field: name of the field or parameter, with dots if it is nested.
        reason: what was expected.
    """

    item: int | None = None
    field: str
    reason: str

    def __str__(self) -> str:
        place = self.field if self.item is None else f"items[{self.item}].{self.field}"
        return f"{place}: {self.reason}"


class ProblemDocument(BaseModel):
    """Body of every error response."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = None


class Problem(Exception):  # noqa: N818 - the name of RFC 9457
    """An error with an HTTP status. The message states the cause and the remedy for the client."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})


class InvalidRequest(Problem):
    """The request is invalid; nothing was stored."""

    status = HTTPStatus.BAD_REQUEST

    def __init__(self, errors: list[FieldError]) -> None:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(f"{errors[0]}{more}")
        self.errors = errors


class Unauthorized(Problem):
    """The request has no API key, or its key is unknown, inactive or expired."""

    status = HTTPStatus.UNAUTHORIZED

    def __init__(self, detail: str, *, error: str | None = None) -> None:
        challenge = 'Bearer realm="observatory"' + (f', error="{error}"' if error else "")
        super().__init__(detail, headers={"WWW-Authenticate": challenge})


class Forbidden(Problem):
    """The key is valid but lacks the scope."""

    status = HTTPStatus.FORBIDDEN

    def __init__(self, scope: str) -> None:
        challenge = f'Bearer realm="observatory", error="insufficient_scope", scope="{scope}"'
        super().__init__(
            f"the API key lacks the scope {scope!r}; use a key that has it", headers={"WWW-Authenticate": challenge}
        )


class NotFound(Problem):
    """The requested object does not exist."""

    status = HTTPStatus.NOT_FOUND


class RequestTimeout(Problem):
    """The body did not arrive in time."""

    status = HTTPStatus.REQUEST_TIMEOUT


class ContentTooLarge(Problem):
    """The body has too many bytes or too many items."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnsupportedMediaType(Problem):
    """The body is not uncompressed JSON."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class TooManyRequests(Problem):
    """The key has exceeded its rate limit."""

    status = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(self, detail: str, retry_after_seconds: int) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_seconds)})


class Unavailable(Problem):
    """The service cannot handle the request now; the client can send the same request again."""

    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail, headers={"Retry-After": str(RETRY_AFTER_S), **(headers or {})})


async def on_problem(_request: Request, error: Exception) -> Response:
    """Return the response of a `Problem`."""
    assert isinstance(error, Problem)  # noqa: S101 - Starlette's type of handlers is wider
    errors = error.errors[:MAX_ERRORS] if isinstance(error, InvalidRequest) else None
    return _response(error.status, error.detail, error.headers, errors)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Return the response of an error that the framework raises (404, 405)."""
    assert isinstance(error, HTTPException)  # noqa: S101
    status, detail = HTTPStatus(error.status_code), error.detail
    if status is HTTPStatus.NOT_FOUND and request.url.path.endswith("/"):
        detail = "no path ends with a slash; send the request to the path without it"
    return _response(status, detail, error.headers)


async def on_failure(_request: Request, _error: Exception) -> Response:
    """Return the response of an unexpected error, whose details are only in the log."""
    return _response(
        HTTPStatus.INTERNAL_SERVER_ERROR, "the service failed to handle the request; its log has the cause"
    )


def _response(
    status: HTTPStatus,
    detail: str,
    headers: Mapping[str, str] | None = None,
    errors: list[FieldError] | None = None,
) -> Response:
    document = ProblemDocument(title=status.phrase, status=status, detail=detail, errors=errors)
    body: dict[str, Any] = document.model_dump(exclude_none=True)
    return Response(to_json(body), status, dict(headers or {}), media_type="application/problem+json")
