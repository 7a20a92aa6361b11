"""The last use of each key, written to `api_keys.last_used_at` in the background, at most once a minute for each key.

The value helps to find unused keys. Recording it never delays a request, and a crash loses at most one minute of it. A
role without the privilege (`GRANT UPDATE (last_used_at) ON api_keys`) records nothing and logs one warning.
"""

import asyncio
import contextlib
import logging

from .database import Connection, Database
from .problems import Problem

INTERVAL_S = 60.0
CLOSE_TIMEOUT_S = 1.0

_MAY_RECORD = "SELECT has_column_privilege('api_keys', 'last_used_at', 'UPDATE')"
# Skips rows that another instance is updating: it writes the same minute.
_RECORD = """
UPDATE api_keys SET last_used_at = now() WHERE id IN (
    SELECT id FROM api_keys
    WHERE id = ANY(%s::uuid[]) AND (last_used_at IS NULL OR last_used_at < now() - %s * INTERVAL '1 second')
    FOR NO KEY UPDATE SKIP LOCKED
)
"""

log = logging.getLogger(__name__)


class KeyUsage:
    """The keys that were used since the last write."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._used: set[str] = set()
        self._recorder: asyncio.Task[None] | None = None
        self._warned = False

    def note(self, key_id: str) -> None:
        """Record in memory that a key is in use."""
        self._used.add(key_id)

    async def open(self) -> None:
        """Start the background writes."""
        self._recorder = asyncio.create_task(self._record_periodically())

    async def close(self) -> None:
        """Stop the background writes, and write the rest."""
        if self._recorder:
            self._recorder.cancel()
            await asyncio.gather(self._recorder, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.record()

    async def record(self) -> None:
        """Write the uses to the database; if it is not available, the next call writes them."""
        if not self._used:
            return
        used = set(self._used)
        with contextlib.suppress(Problem):
            async with self._database.connection() as connection:
                if await self._may_record(connection):
                    await connection.execute(_RECORD, [list(used), INTERVAL_S])
            self._used -= used

    async def _may_record(self, connection: Connection) -> bool:
        row = await (await connection.execute(_MAY_RECORD)).fetchone()
        allowed = bool(row and row[0])
        if not allowed and not self._warned:
            log.warning(
                "the last use of API keys is not recorded: GRANT UPDATE (last_used_at) ON api_keys to this role"
            )
        self._warned = not allowed
        return allowed

    async def _record_periodically(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.record()
