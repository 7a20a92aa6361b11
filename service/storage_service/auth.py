"""Authentication of requests by API key, and the scopes of a key.

`api_keys` stores the SHA-256 of each key; a key has 256 random bits, so no slow hash is needed. Results are cached for
a few seconds, so a revoked or expired key is accepted for that long at most.
"""

import asyncio
import hashlib
import time
from dataclasses import dataclass
from typing import Any, Literal

from psycopg.rows import class_row

from .database import Database
from .problems import Forbidden, Unauthorized

CACHE_SECONDS = 5.0
CACHE_SIZE = 10_000  # limits the memory that a flood of invalid keys can take
LOOKUPS = 2
"""Lookups at a time; others wait, so a flood of invalid keys leaves the other connections to writes and reads."""
_QUERY = """
SELECT id::text AS id, coalesce(scopes, '{}') AS scopes, rate_limit_rpm
FROM api_keys WHERE key_hash = %s AND is_active AND (expires_at IS NULL OR expires_at > now())
"""

Scope = Literal["read", "write"]


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A valid key.

    Attributes:
        id: the row's id; safe to log.
        scopes: scopes that the key has.
        rate_limit_rpm: requests allowed per minute.
    """

    id: str
    scopes: list[str]
    rate_limit_rpm: int

    def require(self, scope: Scope) -> None:
        """Check that the key has the scope.

        Raises:
            Forbidden: the key lacks the scope.
        """
        if scope not in self.scopes:
            raise Forbidden(scope)


class Authenticator:
    """Finds the API key of each request, in its cache or in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cached: dict[str, tuple[float, ApiKey | None]] = {}
        self._lookups = asyncio.Semaphore(LOOKUPS)

    async def authenticate(self, authorization: str | None) -> ApiKey:
        """Return the key of an `Authorization` header.

        Raises:
            Unauthorized: the header has no key, or the key is unknown, inactive or expired.
            Unavailable: the database is not available.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthorized("send an API key in the header 'Authorization: Bearer KEY'")
        key = await self._key(hashlib.sha256(token.strip().encode()).hexdigest())
        if key is None:
            raise Unauthorized("the API key is unknown, inactive or expired; send a valid key", error="invalid_token")
        return key

    async def _key(self, key_hash: str) -> ApiKey | None:
        if not self._is_cached(key_hash):
            async with self._lookups:
                if not self._is_cached(key_hash):  # by another request, meanwhile
                    await self._cache(key_hash)
        return self._cached[key_hash][1]

    def _is_cached(self, key_hash: str) -> bool:
        return time.monotonic() < self._cached.get(key_hash, (0.0, None))[0]

    async def _cache(self, key_hash: str) -> None:
        key = await self._look_up(key_hash)
        if len(self._cached) >= CACHE_SIZE:
            self._cached.clear()
        self._cached[key_hash] = (time.monotonic() + CACHE_SECONDS, key)

    async def _look_up(self, key_hash: str) -> ApiKey | None:
        async with self._database.connection() as connection:
            cursor: Any = connection.cursor(row_factory=class_row(ApiKey))
            await cursor.execute(_QUERY, [key_hash])
            found: ApiKey | None = await cursor.fetchone()
            return found
