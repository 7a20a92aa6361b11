"""A read-through cache on Valkey. When it is unavailable, slow or empty, reads use the database.

The cache never hides a new span. A write replaces the cached trace with an empty marker before the service responds. A
reader that read the database before the write cannot overwrite the marker, which outlives the longest read. Only while
the writing instance cannot reach the cache can another instance return an outdated trace, for at most `TTL_S`.

After the first failure the cache is not used, and a background task checks when it responds again. A cache that
refuses connections therefore delays no request. A cache that hangs delays only the requests that wait for it at that
moment, by the time limit.
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
"""Seconds that a response is cached; costs change with each refresh of their aggregate, every few minutes."""
MAX_VALUE_BYTES = 256 * 1024
RETRY_INTERVAL_S = 0.5
CONNECTIONS = 16
FORMAT = 1  # of keys and values: releases that run at the same time share the cache

_WRITE_MARKERS = "for _, key in ipairs(KEYS) do redis.call('SET', key, '', 'EX', ARGV[1]) end"

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class _PasswordFile(CredentialProvider):
    """Reads the password for each connection, so the password can be rotated."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get_credentials(self) -> tuple[str]:
        return (self._path.read_text(encoding="utf-8").rstrip("\n"),)


class Cache:
    """The client of the cache; without `STORAGE_CACHE_URL` it caches nothing.

    Attributes:
        condition: reason why the cache is not in use; empty while it is in use, None if no cache is configured.
    """

    def __init__(self, settings: Settings, *, metrics: Metrics) -> None:
        self._metrics = metrics
        for query in TTL_S if settings.cache_url else ():
            metrics.cache_hits.labels(query)  # a rate needs a sample of 0 before the first increase
            metrics.cache_misses.labels(query)
        self._timeout = settings.cache_timeout_seconds
        self._marker_ttl_s = math.ceil(settings.database_timeout_seconds) + 1
        self._client = _client(settings) if settings.cache_url else None
        self._watcher: asyncio.Task[None] | None = None
        self.condition: str | None = "not reached yet" if self._client else None

    async def open(self) -> None:
        """Start connecting."""
        if self._client:
            self._watcher = asyncio.create_task(self._watch(self._client))

    async def close(self) -> None:
        """Close every connection."""
        if self._client and self._watcher:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            await self._client.aclose()

    async def get(self, query: CachedQuery, name: str) -> bytes | None:
        """Return a cached response: None if there is none, empty if a write left its marker."""
        if self.condition is None:
            return None
        found: bytes | None = await self._call(lambda client: client.get(_key(query, name)))
        (self._metrics.cache_hits if found else self._metrics.cache_misses).labels(query).inc()
        return found

    async def put(self, query: CachedQuery, name: str, response: bytes) -> None:
        """Cache a response, unless a write left its marker."""
        if len(response) <= MAX_VALUE_BYTES:
            await self._call(lambda client: client.set(_key(query, name), response, ex=TTL_S[query], nx=True))

    async def forget_traces(self, trace_ids: Iterable[str]) -> None:
        """Replace the traces that were written with markers."""
        keys = [_key("trace", trace_id) for trace_id in trace_ids]
        await self._call(lambda client: client.eval(_WRITE_MARKERS, len(keys), *keys, str(self._marker_ttl_s)))

    async def _call(self, command: Callable[[Any], Awaitable[Result]]) -> Result | None:
        """Run a command if the cache is in use; returns None after a failure."""
        if self._client is None or self.condition:
            return None
        try:
            async with asyncio.timeout(self._timeout):
                return await command(self._client)
        except (RedisError, OSError, TimeoutError) as error:
            self._metrics.cache_errors.inc()
            self._note(describe(error))
            return None

    async def _watch(self, client: Redis) -> None:
        """Use the cache again when it responds."""
        while True:
            if self.condition:
                await self._probe(client)
            await asyncio.sleep(RETRY_INTERVAL_S)

    async def _probe(self, client: Redis) -> None:
        try:
            async with asyncio.timeout(RETRY_INTERVAL_S):
                # Old connections are broken, or hold responses to commands that timed out.
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
