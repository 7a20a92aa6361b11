"""Faults under load: a part is killed, or stopped for a while, and clients of the balancer tell what they see of it.

Open loop: writes and reads are sent at their planned times, whatever the answers take. A request is bad when it gets no
answer of success, or gets it later than `PROMPT_S` after its planned time. Nothing is done to bring a killed part back:
that is the stack's own business.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from benchmarks.ingest import stored
from observatory.operations.demonstration import spans
from observatory.runtime import Sandbox

PROMPT_S = 1.0
ANSWER_S = 30.0
WRITES_PER_S, BATCH = 20, 5
BEFORE_S, AFTER_S = 3, 12  # of load around a fault; recovery is wanted within 5 s
# The client's own connections must not count against the stack: none waits for one, and those that a stall of some
# seconds needs stand before it, since a hundred TLS handshakes at once keep the client busy for longer than the stall.
# They are spread over several pools, because httpx looks at every connection of a pool for each request.
POOLS, CONNECTIONS, LIMITS = 15, 10, httpx.Limits(keepalive_expiry=60)
DOWN_S = 5  # how long a stopped part stays away


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request: seconds from the fault to its planned time, its answer's status (0: none), how long that took."""

    at: float
    status: int
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether it did not succeed."""
        return self.status not in (httpx.codes.OK, httpx.codes.CREATED)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What clients saw of a fault.

    `served_s` are the seconds from the fault to the first request from which on none failed, `recovered_s` to that from
    which on none was late either; 0 where none was, infinite where the last one was. `lost` counts the traces that were
    acknowledged and are not stored.
    """

    name: str
    requests: int
    failed: int
    late: int
    served_s: float
    recovered_s: float
    acknowledged: int
    lost: int


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Where to send requests, and what to count in."""

    service_url: str
    api_key: str
    ca_file: str
    database_url: str


def pid_of(sandbox: Sandbox, name: str) -> int:
    """Return the process of a daemon that runs."""
    pid = sandbox.supervisor.status(name).pid
    if pid is None:
        raise RuntimeError(f"{name} does not run")
    return pid


def kill(pid: int) -> Callable[[], None]:
    """Return the fault of a process that is killed; its supervisor is to start it again."""
    return lambda: os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def stopped(sandbox: Sandbox, name: str) -> Iterator[None]:
    """Stop a daemon, and start it again at the end."""
    sandbox.supervisor.stop(name)
    try:
        yield
    finally:
        sandbox.supervisor.start(name)


def stop_for_a_while(sandbox: Sandbox, name: str) -> Callable[[], None]:
    """Return the fault of a daemon that is away for `DOWN_S` seconds."""

    def fault() -> None:
        with stopped(sandbox, name):
            time.sleep(DOWN_S)

    return fault


def measure(stack: Stack, name: str, fault: Callable[[], None]) -> Fault:
    """Put load on the stack, make the fault in the middle of it, and say what became of the requests."""
    written = list(spans(WRITES_PER_S * BATCH * (BEFORE_S + AFTER_S), now=datetime.now(UTC), seed=time.time_ns()))
    batches = [written[start : start + BATCH] for start in range(0, len(written), BATCH)]
    writes, requests = asyncio.run(_load(stack, batches, fault))
    bad = [request for request in requests if request.failed or request.seconds > PROMPT_S]
    acknowledged = [
        item["trace_id"] for batch, request in zip(batches, writes, strict=True) if not request.failed for item in batch
    ]
    return Fault(
        name=name,
        requests=len(requests),
        failed=sum(request.failed for request in requests),
        late=sum(not request.failed for request in bad),
        served_s=_end_of([request for request in bad if request.failed], requests),
        recovered_s=_end_of(bad, requests),
        acknowledged=len(acknowledged),
        lost=len(acknowledged) - stored(stack.database_url, acknowledged),
    )


def _end_of(bad: list[Request], requests: list[Request]) -> float:
    """Return the planned time of the first request after the last bad one; without one it did not end."""
    if not bad:
        return 0.0
    last = max(request.at for request in bad)
    return min((request.at for request in requests if request.at > last), default=float("inf"))


async def _load(
    stack: Stack, batches: list[list[dict[str, Any]]], fault: Callable[[], None]
) -> tuple[list[Request], list[Request]]:
    """Send every batch, and with each a read of the first one's trace; return the writes, and all requests by time."""
    async with contextlib.AsyncExitStack() as opened:
        clients = [await opened.enter_async_context(_client(stack)) for _ in range(POOLS)]
        known = f"/v1/traces/{batches[0][0]['trace_id']}"
        (await clients[0].post("/v1/traces", json={"items": batches[0]})).raise_for_status()
        await asyncio.gather(*(client.get(known) for client in clients for _ in range(CONNECTIONS)))
        zero, turn = time.monotonic() + BEFORE_S, itertools.cycle(clients)
        times = [number / WRITES_PER_S - BEFORE_S for number in range(len(batches))]
        disturbed = asyncio.create_task(asyncio.to_thread(_at, zero, fault))
        writes = [
            _request(next(turn), at, zero, "POST", "/v1/traces", json={"items": batch})
            for batch, at in zip(batches, times, strict=True)
        ]
        reads = [_request(next(turn), at, zero, "GET", known) for at in times]
        requests = await asyncio.gather(*writes, *reads)
        await disturbed
    return requests[: len(writes)], sorted(requests, key=lambda request: request.at)


def _client(stack: Stack) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=stack.service_url,
        headers={"Authorization": f"Bearer {stack.api_key}"},
        timeout=ANSWER_S,
        verify=ssl.create_default_context(cafile=stack.ca_file),
        limits=LIMITS,
    )


async def _request(
    client: httpx.AsyncClient, at: float, zero: float, method: str, path: str, **content: Any
) -> Request:
    """Send a request `at` seconds after the fault's time, which is `zero` of the monotonic clock."""
    planned = zero + at
    await asyncio.sleep(max(0.0, planned - time.monotonic()))
    try:
        status = (await client.request(method, path, **content)).status_code
    except httpx.HTTPError:
        status = 0
    return Request(at=at, status=status, seconds=time.monotonic() - planned)


def _at(when: float, fault: Callable[[], None]) -> None:
    time.sleep(max(0.0, when - time.monotonic()))
    fault()
