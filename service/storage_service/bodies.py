"""Request bodies: received within limits of size, time and memory, and expanded if they are compressed.

The service trusts no body. It counts what has arrived, not what headers declare, and every limit holds for each key:
one that sends much, slowly or nothing at all cannot keep others from sending. Work on a body is divided into steps of a
few milliseconds, between which the process handles other requests.
"""

import asyncio
import contextlib
import time
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TypeVar

import zstandard
from starlette.requests import Request

from .accounts import MemoryAccount
from .fairness import FairShare, Turns
from .metrics import Metrics
from .problems import (
    CLOSE,
    RETRY_AFTER_S,
    ContentTooLarge,
    FieldError,
    InvalidRequest,
    RequestTimeout,
    TooManyRequests,
    UnsupportedMediaType,
)
from .settings import Settings
from .structure import NodeCounter

MAX_BODY_BYTES = 16 * 1024 * 1024
"""Of a body as it is sent, and again when it is expanded."""
MAX_NODES = 250_000
"""Values in a body, on average 250 for each of 1,000 items: objects of 15 MB, made in 20 ms."""
ENCODINGS = ("gzip", "zstd")
SMALL_BYTES = 64 * 1024
"""A body of this size needs a millisecond at most, so it does not wait for its turn."""
STEP_S = 0.002
LONG_STEP_S = 0.01
_PIECE = 64 * 1024
_MAX_WINDOW = 8 * 1024 * 1024  # memory of one zstd decoder, as RFC 8878 recommends
_GZIP = 31  # zlib's name of the format

Step = TypeVar("Step")


class Upload(MemoryAccount):
    """The body of one request, from its first byte until its items are stored."""

    full = (
        "the request bodies of all clients take {held} bytes, and those of this API key at least its share; send fewer "
        "requests at the same time"
    )

    def __init__(self, key: str, settings: Settings, memory: FairShare) -> None:
        super().__init__(key, memory)
        self._settings = settings

    async def receive(self, request: Request) -> bytes:
        """Receive the whole body.

        Raises:
            ContentTooLarge: the body has more than `MAX_BODY_BYTES`.
            RequestTimeout: the body arrives too slowly.
            TooManyRequests: the bodies of this key take too much memory.
        """
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
            raise _too_many_bytes()
        body = bytearray()
        started = asyncio.get_running_loop().time() + self._settings.upload_seconds
        try:
            async with asyncio.timeout_at(started) as deadline:
                async for chunk in request.stream():
                    self.grow(len(chunk))
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise _too_many_bytes()
                    deadline.reschedule(started + len(body) / self._settings.upload_bytes_per_second)
        except TimeoutError:
            raise self._too_slow() from None
        return bytes(body)

    def _too_slow(self) -> RequestTimeout:
        return RequestTimeout(
            f"the body did not arrive within {self._settings.upload_seconds:g} s and a second for each "
            f"{self._settings.upload_bytes_per_second} bytes; send the request again",
            headers=CLOSE,
        )


class Uploads:
    """All bodies in progress, and the turns of the work on them."""

    def __init__(self, settings: Settings, *, metrics: Metrics) -> None:
        self._settings = settings
        self._number = FairShare(settings.max_uploads)
        self._memory = FairShare(settings.max_upload_bytes)
        self._turns = Turns()
        metrics.uploads.set_function(lambda: self._number.held)
        metrics.upload_bytes.set_function(lambda: self._memory.held)

    @contextlib.contextmanager
    def upload(self, key: str) -> Iterator[Upload]:
        """Admit one more body of a key.

        Raises:
            TooManyRequests: the key has as many bodies in progress as it may have.
        """
        if not self._number.fits(key):
            raise TooManyRequests(
                f"{self._number.held} request bodies are in progress, and this API key has at least its share of them; "
                "send fewer requests at the same time",
                RETRY_AFTER_S,
            )
        upload = Upload(key, self._settings, self._memory)
        with self._number.holding(key):
            try:
                yield upload
            finally:
                upload.release()

    @contextlib.asynccontextmanager
    async def turn(self, key: str, size: int) -> AsyncIterator[None]:
        """Wait for the turn of the work on a body of this size; keys take turns."""
        if size <= SMALL_BYTES:
            yield
        else:
            async with self._turns.turn(key):
                yield


def encoding_of(request: Request) -> str:
    """Return the encoding of a JSON body: identity, gzip or zstd.

    Raises:
        UnsupportedMediaType: the headers declare neither JSON nor one of these encodings.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("expected the header Content-Type: application/json")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *ENCODINGS):
        raise UnsupportedMediaType(f"expected the header Content-Encoding: {' or '.join(ENCODINGS)}, or no such header")
    return encoding


async def expanded(body: bytes, encoding: str, upload: Upload) -> bytes:
    """Return the JSON text of a body, after checking its size in bytes and nodes.

    Raises:
        ContentTooLarge: the text has more than `MAX_BODY_BYTES` or `MAX_NODES`.
        InvalidRequest: the body is not valid in its encoding.
        TooManyRequests: the bodies of this key take too much memory.
    """
    if encoding == "identity" and len(body) <= SMALL_BYTES:
        return body
    text, counter, size = [], NodeCounter(), 0
    async for piece in paced(_PIECES[encoding](body)):
        size += len(piece)
        counter.feed(piece)
        if size > MAX_BODY_BYTES:
            raise _too_many_bytes(expanded=True)
        if counter.nodes > MAX_NODES:
            raise ContentTooLarge(
                f"the body has more than {MAX_NODES} values in objects and lists; send the items in several requests"
            )
        if encoding != "identity":
            upload.grow(len(piece))
            text.append(piece)
    return b"".join(text) if text else body


async def paced(steps: Iterable[Step]) -> AsyncIterator[Step]:
    """Yield steps of work, and let other requests run in between.

    A long step, which cannot be divided, is followed by a pause of twice its length. Other requests therefore find the
    event loop free for two thirds of the time at least, whatever a body contains.
    """
    started = time.monotonic()
    for step in steps:
        yield step
        used = time.monotonic() - started
        if used > STEP_S:
            await asyncio.sleep(2 * used if used > LONG_STEP_S else 0)
            started = time.monotonic()


def _plain(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]


def _gunzipped(body: bytes) -> Iterator[bytes]:
    inflater = zlib.decompressobj(wbits=_GZIP)
    try:
        for start in range(0, len(body), _PIECE):
            if inflater.eof:
                raise _not_valid("gzip: data follows its end")
            yield (piece := inflater.decompress(body[start : start + _PIECE], _PIECE))
            while inflater.unconsumed_tail or len(piece) == _PIECE:
                yield (piece := inflater.decompress(inflater.unconsumed_tail, _PIECE))
    except zlib.error as error:
        raise _not_valid(f"gzip: {error}") from None
    if not inflater.eof:
        raise _not_valid("gzip: it is incomplete")
    if inflater.unused_data:
        raise _not_valid("gzip: data follows its end")


def _unzstd(body: bytes) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    with contextlib.suppress(zstandard.ZstdError), decompressor.stream_reader(body) as reader:
        while piece := reader.read(_PIECE):
            yield piece
    # The reader bounds each piece, but does not say whether the frame and its check sum are complete, or where it ends.
    # This does. It does not bound its output, but that is known to be small now.
    whole = decompressor.decompressobj()
    try:
        for start in range(0, len(body), _PIECE):
            if whole.eof:
                raise _not_valid("zstd: data follows its end")
            whole.decompress(body[start : start + _PIECE])
            yield b""
    except zstandard.ZstdError as error:
        raise _not_valid(f"zstd: {error}") from None
    if not whole.eof:
        raise _not_valid("zstd: it is incomplete")
    if whole.unused_data:
        raise _not_valid("zstd: data follows its end")


_PIECES = {"identity": _plain, "gzip": _gunzipped, "zstd": _unzstd}


def _too_many_bytes(*, expanded: bool = False) -> ContentTooLarge:
    state = "expanded " if expanded else ""
    return ContentTooLarge(f"the {state}body has more than {MAX_BODY_BYTES} bytes; send the items in several requests")


def _not_valid(reason: str) -> InvalidRequest:
    return InvalidRequest([FieldError(field="body", reason=f"is not {reason}")])
