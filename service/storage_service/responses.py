"""Parameters of requests, and JSON responses."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .items import field_errors
from .problems import FieldError, InvalidRequest
from .sending import PIECE_BYTES

Query = TypeVar("Query", bound=BaseModel)
_START = b'{"items":['


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


class PageResponse(Response):
    """A page of items, which are JSON already, and further fields. It is never in memory as a whole a second time."""

    def __init__(self, items: Sequence[bytes], **fields: object) -> None:
        self._items = items
        self._rest = b"]," + to_json(fields)[1:]
        commas = max(0, len(items) - 1)
        self.size = len(_START) + sum(map(len, items)) + commas + len(self._rest)
        super().__init__(media_type="application/json", headers={"Content-Length": str(self.size)})

    def pieces(self) -> Iterator[bytes]:
        """Yield the body in pieces of some size."""
        piece = bytearray(_START)
        for index, item in enumerate(self._items):
            if index:
                piece += b","
            piece += item
            if len(piece) >= PIECE_BYTES:
                yield bytes(piece)
                piece.clear()
        yield bytes(piece) + self._rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's form
        """Send the page piece by piece."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self.pieces():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
