"""A read-through cache on Valkey that may be away, slow or emptied at any time: then the database answers.

A freshly written span is not hidden: a write leaves an empty mark in place of the cached trace before it is answered,
and a reader that had read the database before the write cannot fill the place of a mark, which stays for longer than a
read may take. Only while a writer cannot reach the cache may a reader that can see a trace as it was, for `TTL_S`.

The first failure takes the cache out of use, and a task of its own asks when it is back: so a cache that refuses costs
no request anything, and one that hangs costs the time limit to those that are waiting for it at that moment.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError

from .logs import describe
from .metrics import Metrics
from .settings import Settings

CachedQuery = Literal["trace", "costs"]

TTL_S: dict[CachedQuery, int] = {"trace": 5, "costs": 30}
"""Seconds that an answer is kept; costs change with each refresh of their aggregate, every few minutes."""
MAX_VALUE_BYTES = 256 * 1024
RETRY_INTERVAL_S = 0.5
CONNECTIONS = 16
FORMAT = 1  # of the keys and values: releases that run side by side share what they write

_MARK = b""
_MARK_EACH = "for _, key in ipairs(KEYS) do redis.call('SET', key, '', 'EX', ARGV[1]) end"

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)


class _PasswordFile(CredentialProvider):
    """Reads the password for each connection, so that it can be rotated."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get_credentials(self) -> tuple[str]:
        return (self._path.read_text(encoding="utf-8").rstrip("\n"),)


class Cache:
    """The cache as the service sees it; without `STORAGE_CACHE_URL` it holds nothing.

    Attributes:
        condition: why it is out of use; empty if it is in use, None if there is none.
    """

    def __init__(self, settings: Settings, *, metrics: Metrics) -> None:
        self._metrics = metrics
        for query in TTL_S if settings.cache_url else ():
            metrics.cache_hits.labels(query)  # a rate needs the zero before the first
            metrics.cache_misses.labels(query)
        self._timeout = settings.cache_timeout_seconds
        self._mark_seconds = math.ceil(settings.database_timeout_seconds) + 1
        self._client = _client(settings) if settings.cache_url else None
        self._watcher: asyncio.Task[None] | None = None
        self.condition: str | None = "not reached yet" if self._client else None

    async def open(self) -> None:
        """Start to connect."""
        if self._client:
            self._watcher = asyncio.create_task(self._watch(self._client))

    async def close(self) -> None:
        """Close every connection."""
        if self._client and self._watcher:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            await self._client.aclose()

    async def get(self, query: CachedQuery, name: str) -> bytes | None:
        """Return a cached answer; None if there is none, empty if there must be none now."""
        if self.condition is None:
            return None
        found: bytes | None = await self._ask(lambda client: client.get(_key(query, name)))
        (self._metrics.cache_hits if found else self._metrics.cache_misses).labels(query).inc()
        return found

    async def put(self, query: CachedQuery, name: str, answer: bytes) -> None:
        """Keep an answer, unless a write has left a mark in its place."""
        if len(answer) <= MAX_VALUE_BYTES:
            await self._ask(lambda client: client.set(_key(query, name), answer, ex=TTL_S[query], nx=True))

    async def forget_traces(self, trace_ids: Iterable[str]) -> None:
        """Leave marks in the places of traces that were written."""
        keys = [_key("trace", trace_id) for trace_id in trace_ids]
        await self._ask(lambda client: client.eval(_MARK_EACH, len(keys), *keys, str(self._mark_seconds)))

    async def _ask(self, question: Callable[[Any], Awaitable[Answer]]) -> Answer | None:
        """Ask the cache if it is in use; a failure is an answer of None."""
        if self._client is None or self.condition:
            return None
        try:
            async with asyncio.timeout(self._timeout):
                return await question(self._client)
        except (RedisError, OSError, TimeoutError) as error:
            self._metrics.cache_errors.inc()
            self._note(describe(error))
            return None

    async def _watch(self, client: Redis) -> None:
        """Bring the cache back into use when it answers."""
        while True:
            if self.condition:
                await self._try(client)
            await asyncio.sleep(RETRY_INTERVAL_S)

    async def _try(self, client: Redis) -> None:
        try:
            async with asyncio.timeout(RETRY_INTERVAL_S):
                # Those of before the failure lead nowhere, or to answers of questions that were given up.
                await client.connection_pool.disconnect()
                await client.execute_command("PING")  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError) as error:
            self._note(describe(error))
        else:
            self._note("")

    def _note(self, condition: str) -> None:
        if condition != self.condition:
            level = logging.WARNING if condition else logging.INFO
            log.log(level, "cache condition changed", extra={"fields": {"detail": condition or "in use"}})
        self.condition = condition


def _key(query: CachedQuery, name: str) -> str:
    return f"storage:{FORMAT}:{query}:{name}"


def _client(settings: Settings) -> Redis:
    path = settings.cache_password_file
    pool = BlockingConnectionPool.from_url(
        str(settings.cache_url),
        max_connections=CONNECTIONS,
        timeout=settings.cache_timeout_seconds,
        retry=Retry(NoBackoff(), retries=0),
        credential_provider=_PasswordFile(path) if path else None,
    )
    return Redis.from_pool(pool)
