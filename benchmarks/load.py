"""An open-loop load of reads and writes through the balancer, in the background of another operation.

Requests are sent at their planned times, whatever the duration of responses, and latencies count from those times.
Connections are kept alive. A request on a connection that the server has closed is not sent again, so every reset is
counted.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import threading
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Self

import aiohttp

from observatory.operations.demonstration import spans

WRITE_SHARE = 0.2
ROWS = 10  # in a write
SLOW_EVERY_S, SLOW_S = 1.0, 5.0  # interval and duration of writes with a slow body
TIMEOUT_S = 30.0
STORED = 200  # traces to read


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One request: planned time (monotonic), seconds to the end of the response, status (0: none), and version."""

    at: float
    seconds: float
    status: int
    version: str
    slow: bool = False
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether the request did not succeed."""
        return self.status not in (HTTPStatus.OK, HTTPStatus.CREATED)


@dataclass(kw_only=True)
class Load:
    """Sends `rate` requests per second while the block runs; afterwards `answers` has all of them."""

    url: str
    api_key: str
    ca_file: str
    rate: float
    answers: list[Answer] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _begun: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send_all()))
        self._thread.start()
        self._begun.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    async def _send_all(self) -> None:
        async with self._session() as session:
            stored = [str(item["trace_id"]) for item in spans(STORED, now=datetime.now(UTC), seed=time.time_ns())]
            (await session.post("/v1/traces", data=_body(stored))).raise_for_status()
            draw, start = random.Random(1), time.monotonic()  # noqa: S311 - not a secret
            self._begun.set()
            async with asyncio.TaskGroup() as tasks:
                number, slow_at = 0, start
                while not self._ended.is_set():
                    at = start + number / self.rate
                    await asyncio.sleep(max(0.0, at - time.monotonic()))
                    if at >= slow_at:
                        slow_at += SLOW_EVERY_S
                        tasks.create_task(self._request(session, at, "POST", "/v1/traces", slow=True))
                    elif draw.random() < WRITE_SHARE:
                        tasks.create_task(self._request(session, at, "POST", "/v1/traces"))
                    else:
                        tasks.create_task(self._request(session, at, "GET", f"/v1/traces/{draw.choice(stored)}"))
                    number += 1

    def _session(self) -> aiohttp.ClientSession:
        session = aiohttp.ClientSession(
            self.url,
            headers={"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"},
            connector=aiohttp.TCPConnector(
                ssl=ssl.create_default_context(cafile=self.ca_file), limit=0, keepalive_timeout=50
            ),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        )
        session._retry_connection = False  # noqa: SLF001 - there is no public option to count every reset
        return session

    async def _request(
        self, session: aiohttp.ClientSession, at: float, method: str, path: str, *, slow: bool = False
    ) -> None:
        body = _body([uuid.uuid4().hex for _ in range(ROWS)]) if method == "POST" else None
        status, version, error = 0, "", ""
        try:
            data: Any = _slowly(body) if slow and body else body
            async with session.request(method, path, data=data) as answer:
                text = await answer.read()
            status, version = answer.status, answer.headers.get("X-Observatory-Version", "")
            error = text[:200].decode(errors="replace") if status >= HTTPStatus.BAD_REQUEST else ""
        except (aiohttp.ClientError, TimeoutError) as failure:
            error = repr(failure)
        seconds = time.monotonic() - at
        self.answers.append(Answer(at=at, seconds=seconds, status=status, version=version, slow=slow, error=error))


def _body(trace_ids: list[str]) -> bytes:
    now = datetime.now(UTC).isoformat()
    return json.dumps({"items": [{**_SPAN, "ts": now, "trace_id": trace_id} for trace_id in trace_ids]}).encode()


async def _slowly(body: bytes) -> AsyncIterator[bytes]:
    """Yield a body in two parts, `SLOW_S` apart."""
    half = len(body) // 2
    yield body[:half]
    await asyncio.sleep(SLOW_S)
    yield body[half:]


_SPAN = next(spans(1, now=datetime.now(UTC), seed=1))
