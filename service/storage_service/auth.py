"""API keys: who sends a request, and what they may do.

Keys are kept as SHA-256 in `api_keys`; a key has 256 random bits, so no slow hash is needed. Answers are remembered for
a few seconds, so a key that is revoked or expires works on for that long at most.
"""

import hashlib
import time
from dataclasses import dataclass
from typing import Any, Literal

from psycopg.rows import class_row

from .database import Database
from .problems import Forbidden, Unauthorized

CACHE_SECONDS = 5.0
CACHE_SIZE = 10_000  # a flood of made-up keys is forgotten, not collected
_QUERY = """
SELECT id::text AS id, coalesce(scopes, '{}') AS scopes, rate_limit_rpm
FROM api_keys WHERE key_hash = %s AND is_active AND (expires_at IS NULL OR expires_at > now())
"""

Scope = Literal["read", "write"]


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A valid key.

    Attributes:
        id: the row's id, fit for logs.
        scopes: what it may do.
        rate_limit_rpm: requests that it may send in a minute.
    """

    id: str
    scopes: list[str]
    rate_limit_rpm: int

    def require(self, scope: Scope) -> None:
        """Refuse unless the key has the scope.

        Raises:
            Forbidden: it has not.
        """
        if scope not in self.scopes:
            raise Forbidden(scope)


class Authenticator:
    """Looks up the keys of requests."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, tuple[float, ApiKey | None]] = {}

    async def authenticate(self, authorization: str | None) -> ApiKey:
        """Return the key of an `Authorization` header.

        Raises:
            Unauthorized: there is no key in it, or it is unknown, inactive or expired.
            Unavailable: the database is away.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthorized("send an API key in the header 'Authorization: Bearer KEY'")
        key = await self._key(hashlib.sha256(token.strip().encode()).hexdigest())
        if key is None:
            raise Unauthorized("the API key is unknown, inactive or expired", error="invalid_token")
        return key

    async def _key(self, key_hash: str) -> ApiKey | None:
        deadline, key = self._known.get(key_hash, (0.0, None))
        if time.monotonic() < deadline:
            return key
        key = await self._look_up(key_hash)
        if len(self._known) >= CACHE_SIZE:
            self._known.clear()
        self._known[key_hash] = (time.monotonic() + CACHE_SECONDS, key)
        return key

    async def _look_up(self, key_hash: str) -> ApiKey | None:
        async with self._database.connection() as connection:
            cursor: Any = connection.cursor(row_factory=class_row(ApiKey))
            await cursor.execute(_QUERY, [key_hash])
            found: ApiKey | None = await cursor.fetchone()
            return found
