"""Users of a stack: an open-loop mix of reads and writes that checks the content of every response.

Owns the requests, and what counts as a hurt user. Does not own rates of benchmarks, which `benchmarks.load` has.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Self

import aiohttp

from observatory.operations.demonstration import spans

TIMEOUT_S = 8.0  # after which a user gives up
LATE_S = 2.0  # a later response has hurt, whatever it is
ROWS = 10
STORED = 100  # traces that are there before anything begins
SLOW_S = 5.0  # between the two parts of a slow upload
NAMES = ("trace", "own trace", "list", "costs", "traces", "logs")
SHARES = (50, 10, 8, 2, 20, 10)
HOUR = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """What one user got.

    Attributes:
        at: planned time of the request, monotonic.
        seconds: to the end of the response.
        kind: of the request.
        version: that answered; empty without a response.
        wrong: why the response is not what it should be; empty if it is.
        late: whether that is its time alone.
    """

    at: float
    seconds: float
    kind: str
    version: str
    wrong: str
    late: bool

    @property
    def ended(self) -> float:
        """When the user had the response, or gave up."""
        return self.at + self.seconds


@dataclass(kw_only=True)
class Habits:
    """What users do.

    Attributes:
        rate: requests a second; a burst multiplies it.
        burst: the factor, now.
        slow_uploads: share of the writes that take `SLOW_S` to send their body.
        impatient: share of the requests that are given up after a few milliseconds.
        mistaken: share of the requests with a wrong key, or for a trace that is not stored.
    """

    rate: float = 50.0
    burst: Callable[[float], float] = lambda _seconds: 1.0
    slow_uploads: float = 0.0
    impatient: float = 0.0
    mistaken: float = 0.0


@dataclass(kw_only=True)
class Users:
    """Send requests while the block runs; afterwards `responses` has all of them."""

    url: str
    api_key: str = field(repr=False)
    ca_file: str
    habits: Habits = field(default_factory=Habits)
    late_s: float = LATE_S
    responses: list[Response] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ended, self._begun = threading.Event(), threading.Event()
        self._draw = random.Random(1)  # noqa: S311 - no secret
        self._stored = [str(span["trace_id"]) for span in spans(STORED, now=datetime.now(UTC), seed=time.time_ns())]
        self._written: deque[tuple[float, str]] = deque(maxlen=20)  # the newest: a user reads back soon

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send_all()))
        self._thread.start()
        self._begun.wait(TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    async def _send_all(self) -> None:
        async with self._session() as session, asyncio.TaskGroup() as tasks:
            for _ in range(3):
                async with session.post("/v1/traces", data=_body("traces", self._stored)) as stored:
                    if stored.status == HTTPStatus.CREATED:
                        break
            self._begun.set()
            start = at = time.monotonic()
            while not self._ended.is_set():
                await asyncio.sleep(max(0.0, at - time.monotonic()))
                tasks.create_task(self._request(session, at))
                at += 1 / (self.habits.rate * self.habits.burst(at - start))

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            self.url,
            headers={"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"},
            connector=aiohttp.TCPConnector(
                ssl=ssl.create_default_context(cafile=self.ca_file), limit=0, keepalive_timeout=50
            ),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        )

    async def _request(self, session: aiohttp.ClientSession, at: float) -> None:
        """Send one request and note its response; mistakes and impatience of the user are nobody's fault."""
        kind, patience = self._draw.choices(NAMES, SHARES)[0], TIMEOUT_S
        if self._draw.random() < self.habits.impatient:
            patience = 0.003
        if self._draw.random() < self.habits.mistaken:
            await _mistake(session)
            return
        method, path, body, right = self._plan(kind)
        version, wrong = "", ""
        try:
            async with asyncio.timeout(patience):
                async with session.request(method, path, data=body, allow_redirects=False) as response:
                    text = await response.read()
            version = response.headers.get("X-Observatory-Version", "")
            wrong = right(response.status, text)
        except (aiohttp.ClientError, TimeoutError) as error:
            wrong = "" if patience < TIMEOUT_S else f"no response: {error!r}"
        seconds = time.monotonic() - at
        late = not wrong and seconds > self.late_s and not _is_slow(body)
        wrong = f"after {seconds:.1f} s" if late else wrong
        self.responses.append(Response(at=at, seconds=seconds, kind=kind, version=version, wrong=wrong, late=late))

    def _plan(self, kind: str) -> tuple[str, str, Any, Callable[[int, bytes], str]]:
        """Return method, path and body of a request, and what checks its response."""
        if kind == "own trace" and self._written and time.monotonic() - self._written[0][0] > 1:
            trace_id = self._written.popleft()[1]
            return "GET", f"/v1/traces/{trace_id}", None, lambda status, text: _spans_of(trace_id, status, text)
        if kind in {"trace", "own trace"}:
            trace_id = self._draw.choice(self._stored)
            return "GET", f"/v1/traces/{trace_id}", None, lambda status, text: _spans_of(trace_id, status, text)
        if kind == "list":
            return "GET", "/v1/traces?limit=20", None, _full
        if kind == "costs":
            hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
            period = f"from={hour - HOUR:%Y-%m-%dT%H:%M:%SZ}&to={hour + HOUR:%Y-%m-%dT%H:%M:%SZ}"
            return "GET", f"/v1/costs?{period}&bucket=total", None, _full
        ids = [uuid.uuid4().hex for _ in range(ROWS)]
        body = _body(kind, ids)

        def accepted(status: int, text: bytes) -> str:
            if status == HTTPStatus.CREATED and kind == "traces":
                self._written.append((time.monotonic(), ids[0]))
            return "" if status == HTTPStatus.CREATED else f"{status} {text[:100]!r}"

        slow = self._draw.random() < self.habits.slow_uploads
        return "POST", f"/v1/{kind}", _slowly(body) if slow else body, accepted


async def _mistake(session: aiohttp.ClientSession) -> None:
    headers = random.choice(({"Authorization": f"Bearer {uuid.uuid4().hex}"}, {}))  # noqa: S311 - no secret
    try:
        async with session.get(f"/v1/traces/{uuid.uuid4().hex}", headers=headers) as response:
            await response.read()
    except (aiohttp.ClientError, TimeoutError):
        return


def _spans_of(trace_id: str, status: int, text: bytes) -> str:
    return _full(status, text) or ("" if trace_id.encode() in text else "another trace")


def _full(status: int, text: bytes) -> str:
    """Return why a list is not one with items."""
    if status != HTTPStatus.OK:
        return f"{status} {text[:100]!r}"
    try:
        return "" if json.loads(text)["items"] else "an empty list"
    except (ValueError, KeyError, TypeError):
        return f"not JSON: {text[:50]!r}"


def _body(kind: str, trace_ids: list[str]) -> bytes:
    now = datetime.now(UTC).isoformat()
    if kind == "logs":
        items = [{"ts": now, "trace_id": each, "log_level": "info", "message": "of a user"} for each in trace_ids]
    else:
        items = [{**_SPAN, "ts": now, "trace_id": each} for each in trace_ids]
    return json.dumps({"items": items}).encode()


async def _slowly(body: bytes) -> AsyncIterator[bytes]:
    """Yield a body in two parts, `SLOW_S` apart."""
    half = len(body) // 2
    yield body[:half]
    await asyncio.sleep(SLOW_S)
    yield body[half:]


def _is_slow(body: object) -> bool:
    return body is not None and not isinstance(body, bytes)


_SPAN = next(spans(1, now=datetime.now(UTC), seed=1))
