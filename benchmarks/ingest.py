"""Open-loop ingest through the balancer: a fixed rate for a fixed time, whatever the duration of responses."""

from __future__ import annotations

import asyncio
import ssl
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import psycopg

from observatory.operations.demonstration import spans

DEADLINE_S = 30


@dataclass(frozen=True, kw_only=True)
class Ingest:
    """The result of a run; latencies are in milliseconds, from the planned time of sending."""

    rate: int
    batch: int
    seconds: float
    sent: int
    accepted: int
    failed: int
    stored: int
    p50_ms: float
    p99_ms: float


def measure(
    service_url: str, api_key: str, ca_file: str, database_url: str, *, rate: int, batch: int, seconds: int
) -> Ingest:
    """Send `rate` traces per second in batches for `seconds`, then count them in the database."""
    items = list(spans(rate * seconds, now=datetime.now(UTC), seed=time.time_ns()))
    batches = [items[start : start + batch] for start in range(0, len(items), batch)]
    started = time.monotonic()
    responses = asyncio.run(_send_all(service_url, api_key, ca_file, batches, interval=batch / rate))
    elapsed = time.monotonic() - started
    latencies = sorted(latency for _, latency in responses)
    created = [status == httpx.codes.CREATED for status, _ in responses]
    return Ingest(
        rate=rate,
        batch=batch,
        seconds=elapsed,
        sent=len(items),
        accepted=sum(created) * batch,
        failed=len(created) - sum(created),
        stored=stored(database_url, [item["trace_id"] for item in items]),
        p50_ms=statistics.median(latencies) * 1000,
        p99_ms=latencies[int(len(latencies) * 0.99)] * 1000,
    )


async def _send_all(
    url: str, key: str, ca_file: str, batches: list[list[dict[str, Any]]], *, interval: float
) -> list[Any]:
    trusted = ssl.create_default_context(cafile=ca_file)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=DEADLINE_S, verify=trusted) as client:
        start = time.monotonic()
        return await asyncio.gather(
            *(_send(client, batch, at=start + number * interval) for number, batch in enumerate(batches))
        )


async def _send(client: httpx.AsyncClient, batch: list[dict[str, Any]], *, at: float) -> tuple[int, float]:
    await asyncio.sleep(max(0.0, at - time.monotonic()))
    try:
        status = (await client.post("/v1/traces", json={"items": batch})).status_code
    except httpx.HTTPError:
        status = 0
    return status, time.monotonic() - at


def stored(database_url: str, trace_ids: list[str]) -> int:
    """Return the number of rows of these traces in the database."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT count(*) FROM llm_traces WHERE trace_id = ANY(%s)", [trace_ids]).fetchone()
    return int(row[0]) if row else 0
