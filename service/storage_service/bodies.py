"""Reading of request bodies, limited in size and time."""

import asyncio

from starlette.requests import Request

from .problems import CLOSE, ContentTooLarge, RequestTimeout, UnsupportedMediaType

MAX_BODY_BYTES = 16 * 1024 * 1024
BODY_TIMEOUT_S = 30


async def read_json_body(request: Request) -> bytes:
    """Read the body of a request that declares JSON.

    Raises:
        UnsupportedMediaType: the headers do not declare uncompressed JSON.
        ContentTooLarge: the body has more than `MAX_BODY_BYTES`.
        RequestTimeout: the body did not arrive within `BODY_TIMEOUT_S`.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("expected the header Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("expected an uncompressed body, without the header Content-Encoding")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise _too_many_bytes()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read_bounded(request)
    except TimeoutError:
        raise RequestTimeout(
            f"the body did not arrive within {BODY_TIMEOUT_S} s; send the request again", headers=CLOSE
        ) from None


async def _read_bounded(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _too_many_bytes()
    return bytes(body)


def _too_many_bytes() -> ContentTooLarge:
    return ContentTooLarge(f"the body has more than {MAX_BODY_BYTES} bytes; send the items in several requests")
