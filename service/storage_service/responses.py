"""Parameters of requests, and JSON responses."""

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from .items import field_errors
from .problems import FieldError, InvalidRequest

Query = TypeVar("Query", bound=BaseModel)


def parameters(request: Request, model: type[Query]) -> Query:
    """Return the query parameters of a request.

    Raises:
        InvalidRequest: names the parameters that are unknown, invalid, missing or repeated.
    """
    counts = Counter(name for name, _ in request.query_params.multi_items())
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise InvalidRequest([FieldError(field=name, reason="occurs more than once") for name in repeated])
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise InvalidRequest(list(field_errors(error))) from None


def json_response(content: object, *, status: int = 200) -> Response:
    """Return a JSON response; models and rows may contain datetimes."""
    return Response(to_json(content), status, media_type="application/json")


def page_response(items: Sequence[bytes], **fields: object) -> Response:
    """Return a page of items, which are JSON already, and further fields."""
    rest = to_json(fields)
    return Response(b'{"items":[' + b",".join(items) + b"]," + rest[1:], media_type="application/json")
