"""The capacity of ingest beside that of COPY: how many traces a second each stores in the same table.

Both write batches of the same size, as fast as they can, in turns in one run. COPY is one connection to the database
that has the rows ready; ingest is a closed loop of a few clients through the balancer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import psycopg

from benchmarks.ingest import stored
from observatory.operations.demonstration import spans
from service.storage_service.items import Batch, Window
from service.storage_service.tables import Row
from service.storage_service.traces import TRACES, Trace

BATCH, BATCHES, ROUNDS, CLIENTS = 1000, 60, 3, 4
TIMEOUT_S = 60


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Rates in traces per second, medians of the rounds; numbers of all rounds."""

    copied: float
    ingested: float
    failed: int
    sent: int
    stored: int

    @property
    def share(self) -> float:
        """The rate of ingest as a share of COPY's."""
        return self.ingested / self.copied


def measure(service_url: str, api_key: str, ca_file: str, database_url: str) -> Capacity:
    """Measure both in turns, and count what ingest stored."""
    copied, ingested, failed, sent = [], [], 0, list[str]()
    for _ in range(ROUNDS):
        copied.append(BATCH * BATCHES / _copy(database_url, [_rows(batch) for batch in _batches()]))
        batches = _batches()
        sent += [str(item["trace_id"]) for item in itertools.chain(*batches)]
        seconds, statuses = asyncio.run(_ingest(service_url, api_key, ca_file, [_body(batch) for batch in batches]))
        ingested.append(BATCH * BATCHES / seconds)
        failed += sum(status != 201 for status in statuses)  # noqa: PLR2004 - Created
    return Capacity(
        copied=statistics.median(copied),
        ingested=statistics.median(ingested),
        failed=failed,
        sent=len(sent),
        stored=stored(database_url, sent),
    )


def _batches() -> list[list[dict[str, Any]]]:
    items = list(spans(BATCH * BATCHES, now=datetime.now(UTC), seed=time.time_ns()))
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def _body(batch: list[dict[str, Any]]) -> bytes:
    return json.dumps({"items": batch}).encode()


def _rows(batch: list[dict[str, Any]]) -> list[Row]:
    """Return the rows as the service stores them."""
    now = datetime.now(UTC)
    parsed = Batch(_body(batch), Trace, Window(earliest=now - timedelta(days=1), latest=now + timedelta(days=1)))
    for _ in parsed.steps():
        pass
    return TRACES.rows(parsed.accepted())


def _copy(database_url: str, batches: Iterable[list[Row]]) -> float:
    """Return the seconds that COPY takes, with one transaction for each batch."""
    columns = ", ".join(TRACES.columns)
    with psycopg.connect(database_url, autocommit=True) as connection, connection.cursor() as cursor:
        started = time.monotonic()
        for rows in batches:
            with cursor.copy(f"COPY llm_traces ({columns}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        return time.monotonic() - started


async def _ingest(url: str, key: str, ca_file: str, bodies: list[bytes]) -> tuple[float, list[int]]:
    """Return the seconds that the service takes, and the status of each request."""
    waiting, statuses = iter(bodies), list[int]()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca_file))
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)

    async def send_next(session: aiohttp.ClientSession) -> None:
        for body in waiting:
            async with session.post("/v1/traces", data=body) as answer:
                await answer.read()
            statuses.append(answer.status)

    async with aiohttp.ClientSession(url, headers=headers, connector=connector, timeout=timeout) as session:
        started = time.monotonic()
        await asyncio.gather(*(send_next(session) for _ in range(CLIENTS)))
        return time.monotonic() - started, statuses
