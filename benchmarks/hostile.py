"""Small writes of one key beside hostile clients of another, all through the balancer."""

from __future__ import annotations

import asyncio
import collections
import hashlib
import multiprocessing
import secrets
import ssl
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import psycopg

from tests.service.harness import item
from tests.service.hostile import BODIES

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITES_PER_S, SECONDS = 20, 30
LARGE, SLOW = 4, 32  # connections
TIMEOUT_S = 60
SETTLE_S = 3


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Small writes beside one kind of hostile client; latencies are in milliseconds, from the planned time."""

    hostile: str
    writes: int
    failed: int
    p50_ms: float
    p99_ms: float
    max_ms: float


def measure(service_url: str, api_key: str, ca_file: str, admin_url: str) -> list[Neighbours]:
    """Measure small writes alone, beside hostile bodies, and beside slow ones."""
    kinds: dict[str, Callable[..., Awaitable[None]] | None] = {
        "none": None,
        f"{LARGE} connections with hostile bodies of up to 16 MiB": _send_large,
        f"{SLOW} connections with unfinished bodies": _send_slow,
    }
    with _key(admin_url) as hostile_key:
        return [
            _measure(name, send, (service_url, api_key, ca_file), (service_url, hostile_key, ca_file))
            for name, send in kinds.items()
        ]


def _measure(
    name: str, send: Callable[..., Awaitable[None]] | None, own: tuple[str, str, str], hostile: tuple[str, str, str]
) -> Neighbours:
    process = multiprocessing.Process(target=_run, args=(send, hostile)) if send else None
    if process:
        process.start()
        time.sleep(SETTLE_S)
    try:
        answers = asyncio.run(_write(*own))
    finally:
        if process:
            process.kill()
            process.join()
    latencies = sorted(seconds * 1000 for _, seconds in answers)
    return Neighbours(
        hostile=name,
        writes=len(answers),
        failed=sum(status != 201 for status, _ in answers),  # noqa: PLR2004 - Created
        p50_ms=statistics.median(latencies),
        p99_ms=latencies[int(len(latencies) * 0.99)],
        max_ms=latencies[-1],
    )


@contextmanager
def _key(admin_url: str) -> Iterator[str]:
    """Return a further key without a limit of requests, for the duration of the block."""
    key = secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    insert = (
        "INSERT INTO api_keys (key_hash, key_prefix, name, scopes, rate_limit_rpm)"
        " VALUES (%s, %s, 'benchmark', '{write}', 1000000)"
    )
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(insert, [digest, key[:8]])
        try:
            yield key
        finally:
            connection.execute("DELETE FROM api_keys WHERE key_hash = %s", [digest])


async def _write(url: str, key: str, ca_file: str) -> list[tuple[int, float]]:
    """Send small writes at their planned times; returns status (0: no response) and seconds of each."""
    async with _session(url, key, ca_file) as session:
        await (await session.post("/v1/traces", json={"items": [item()]})).read()
        start = time.monotonic()
        planned = (start + number / WRITES_PER_S for number in range(WRITES_PER_S * SECONDS))
        return await asyncio.gather(*(_write_one(session, at) for at in planned))


async def _write_one(session: aiohttp.ClientSession, at: float) -> tuple[int, float]:
    await asyncio.sleep(max(0.0, at - time.monotonic()))
    status = 0
    try:
        async with session.post("/v1/traces", json={"items": [item()]}) as answer:
            await answer.read()
        status = answer.status
    except (aiohttp.ClientError, TimeoutError):
        pass
    return status, time.monotonic() - at


def _session(url: str, key: str, ca_file: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        url,
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca_file), limit=0),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
    )


def _run(send: Callable[..., Awaitable[None]], target: tuple[str, str, str]) -> None:
    asyncio.run(send(*target))  # type: ignore[arg-type]


async def _send_large(url: str, key: str, ca_file: str) -> None:
    """Send every hostile body again and again, on a few connections."""
    bodies = [make() for make in BODIES.values()]
    statuses: collections.Counter[int] = collections.Counter()

    async def send(session: aiohttp.ClientSession, first: int) -> None:
        for number in range(first, 1_000_000):
            try:
                async with session.post("/v1/traces", data=bodies[number % len(bodies)]) as answer:
                    await answer.read()
                statuses[answer.status] += 1
            except aiohttp.ClientError:
                statuses[0] += 1

    async with _session(url, key, ca_file) as session:
        await asyncio.gather(*(send(session, number * len(bodies) // LARGE) for number in range(LARGE)))


async def _send_slow(url: str, key: str, ca_file: str) -> None:
    """Open connections that send headers and the first byte of a body, and open each again when it is closed."""
    address = urlsplit(url)
    trusted = ssl.create_default_context(cafile=ca_file)
    start = (
        f"POST /v1/traces HTTP/1.1\r\nHost: {address.hostname}\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    )

    async def hold() -> None:
        while True:
            reader, writer = await asyncio.open_connection(address.hostname, address.port, ssl=trusted)
            writer.write(start.encode())
            await reader.read()
            writer.close()

    await asyncio.gather(*(hold() for _ in range(SLOW)))


def row(measured: Any) -> str:
    """Return a row of the report's table."""
    cells = (
        measured.hostile,
        measured.writes,
        measured.failed,
        *map(_ms, (measured.p50_ms, measured.p99_ms, measured.max_ms)),
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _ms(value: float) -> str:
    return f"{value:.0f} ms"
