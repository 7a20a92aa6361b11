"""Faults under load: a daemon is killed or stopped while clients send requests through the balancer.

The load is open loop: requests are sent at their planned times, whatever the duration of responses. A request is bad if
it fails, or if its response arrives more than `PROMPT_S` after its planned time. The stack itself restarts a killed
daemon.
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
TIMEOUT_S = 30.0
WRITES_PER_S, BATCH = 20, 5
BEFORE_S, AFTER_S = 3, 12  # load before and after a fault; the target for recovery is 5 s
# The client must not limit the measurement: no request waits for a connection, and the connections that a stall needs
# are open before it, because a hundred concurrent TLS handshakes take longer than the stall. They are spread over
# several pools, because httpx checks every connection of a pool for each request.
POOLS, CONNECTIONS, LIMITS = 15, 10, httpx.Limits(keepalive_expiry=60)
AFTER_RESTART_S = 40  # load after a fault that restarts every daemon; the target is an outage of 20 s
DOWN_S = 5  # how long a stopped daemon is down


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request: planned time in seconds after the fault, status (0: no response), and duration in seconds."""

    at: float
    status: int
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether the request did not succeed."""
        return self.status not in (httpx.codes.OK, httpx.codes.CREATED)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The effect of a fault on clients.

    Attributes:
        name: name of the fault.
        requests: number of requests.
        failed: requests without a successful response.
        late: successful requests with a response later than `PROMPT_S`.
        served_s: seconds from the fault until no request fails; 0 if none failed, infinite if the last one failed.
        recovered_s: seconds from the fault until no request fails or is late.
        acknowledged: traces that the service accepted.
        lost: acknowledged traces that are not in the database.
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
    """The addresses and the key of a stack."""

    service_url: str
    api_key: str
    ca_file: str
    database_url: str


def pid_of(sandbox: Sandbox, name: str) -> int:
    """Return the process id of a running daemon.

    Raises:
        RuntimeError: the daemon does not run.
    """
    pid = sandbox.supervisor.status(name).pid
    if pid is None:
        raise RuntimeError(f"the daemon {name} does not run")
    return pid


def kill(pid: int) -> Callable[[], None]:
    """Return a fault that kills a process; its supervisor restarts it."""
    return lambda: os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def stopped(sandbox: Sandbox, name: str) -> Iterator[None]:
    """Stop a daemon, and start it at the end."""
    sandbox.supervisor.stop(name)
    try:
        yield
    finally:
        sandbox.supervisor.start(name)


def stop_temporarily(sandbox: Sandbox, name: str) -> Callable[[], None]:
    """Return a fault that stops a daemon for `DOWN_S` seconds."""

    def fault() -> None:
        with stopped(sandbox, name):
            time.sleep(DOWN_S)

    return fault


def measure(stack: Stack, name: str, fault: Callable[[], None], *, after_s: int = AFTER_S) -> Fault:
    """Send load, inject the fault after `BEFORE_S`, continue for `after_s`, and return its effect on the requests."""
    written = list(spans(WRITES_PER_S * BATCH * (BEFORE_S + after_s), now=datetime.now(UTC), seed=time.time_ns()))
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
    """Return the planned time of the first request after the last bad one; infinite if there is none."""
    if not bad:
        return 0.0
    last = max(request.at for request in bad)
    return min((request.at for request in requests if request.at > last), default=float("inf"))


async def _load(
    stack: Stack, batches: list[list[dict[str, Any]]], fault: Callable[[], None]
) -> tuple[list[Request], list[Request]]:
    """Send every batch, each with a read of the first trace; returns the writes, and all requests by time."""
    async with contextlib.AsyncExitStack() as opened:
        clients = [await opened.enter_async_context(_client(stack)) for _ in range(POOLS)]
        stored_trace = f"/v1/traces/{batches[0][0]['trace_id']}"
        (await clients[0].post("/v1/traces", json={"items": batches[0]})).raise_for_status()
        await asyncio.gather(*(client.get(stored_trace) for client in clients for _ in range(CONNECTIONS)))
        fault_time, pool = time.monotonic() + BEFORE_S, itertools.cycle(clients)
        times = [number / WRITES_PER_S - BEFORE_S for number in range(len(batches))]
        faulting = asyncio.create_task(asyncio.to_thread(_run_at, fault_time, fault))
        writes = [
            _request(next(pool), at, fault_time, "POST", "/v1/traces", json={"items": batch})
            for batch, at in zip(batches, times, strict=True)
        ]
        reads = [_request(next(pool), at, fault_time, "GET", stored_trace) for at in times]
        requests = await asyncio.gather(*writes, *reads)
        await faulting
    return requests[: len(writes)], sorted(requests, key=lambda request: request.at)


def _client(stack: Stack) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=stack.service_url,
        headers={"Authorization": f"Bearer {stack.api_key}"},
        timeout=TIMEOUT_S,
        verify=ssl.create_default_context(cafile=stack.ca_file),
        limits=LIMITS,
    )


async def _request(
    client: httpx.AsyncClient, at: float, fault_time: float, method: str, path: str, **content: Any
) -> Request:
    """Send a request `at` seconds after `fault_time` of the monotonic clock."""
    planned = fault_time + at
    await asyncio.sleep(max(0.0, planned - time.monotonic()))
    try:
        status = (await client.request(method, path, **content)).status_code
    except httpx.HTTPError:
        status = 0
    return Request(at=at, status=status, seconds=time.monotonic() - planned)


def _run_at(when: float, fault: Callable[[], None]) -> None:
    time.sleep(max(0.0, when - time.monotonic()))
    fault()
