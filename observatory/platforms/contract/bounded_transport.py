"""Responses of bounded size and time: a release that never ends one is a finding, and no check that never ends."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx

from observatory.platforms.contract.requirements import ContractError

MAX_BYTES = 16 * 2**20


class BoundedTransport(httpx.BaseTransport):
    """HTTP whose responses raise `ContractError` if they are longer than `MAX_BYTES` or take longer than `seconds`."""

    def __init__(self, *, seconds: float) -> None:
        self._transport = httpx.HTTPTransport()
        self._seconds = seconds

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return the response, whose body is read in bounds."""
        response = self._transport.handle_request(request)
        assert isinstance(response.stream, httpx.SyncByteStream)  # noqa: S101 - of a synchronous transport
        place = f"{request.method} {request.url.path}"
        response.stream = _Bounded(response.stream, place=place, until=time.monotonic() + self._seconds)
        return response

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


class _Bounded(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, *, place: str, until: float) -> None:
        self._stream, self._place, self._until = stream, place, until

    def __iter__(self) -> Iterator[bytes]:
        length = 0
        for part in self._stream:
            length += len(part)
            if length > MAX_BYTES:
                raise ContractError(f"the response to {self._place} is longer than {MAX_BYTES >> 20} MiB")
            if time.monotonic() > self._until:
                raise ContractError(f"the response to {self._place} does not end")
            yield part

    def close(self) -> None:
        self._stream.close()
