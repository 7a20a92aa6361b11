"""When each key was last used: written to `api_keys.last_used_at` behind the requests, at most once a minute for a key.

It is for people who clean up keys, so it never costs a request anything, and what a crash loses is a minute of it.
A role that may not update the column (`GRANT UPDATE (last_used_at) ON api_keys`) records nothing, and says so once.
"""

import asyncio
import contextlib
import logging

from .database import Connection, Database
from .problems import Problem

INTERVAL_S = 60.0
CLOSE_TIMEOUT_S = 1.0

_MAY_RECORD = "SELECT has_column_privilege('api_keys', 'last_used_at', 'UPDATE')"
# Rows that another instance is writing are skipped: it writes the same minute.
_RECORD = """
UPDATE api_keys SET last_used_at = now() WHERE id IN (
    SELECT id FROM api_keys
    WHERE id = ANY(%s::uuid[]) AND (last_used_at IS NULL OR last_used_at < now() - %s * INTERVAL '1 second')
    FOR NO KEY UPDATE SKIP LOCKED
)
"""

log = logging.getLogger(__name__)


class KeyUsage:
    """The keys that were used since the last time that it was written down."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._used: set[str] = set()
        self._recorder: asyncio.Task[None] | None = None
        self._told = False

    def note(self, key_id: str) -> None:
        """Note that a key was used now."""
        self._used.add(key_id)

    async def open(self) -> None:
        """Begin to write down what is noted."""
        self._recorder = asyncio.create_task(self._record_for_ever())

    async def close(self) -> None:
        """Write down the rest."""
        if self._recorder:
            self._recorder.cancel()
            await asyncio.gather(self._recorder, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.record()

    async def record(self) -> None:
        """Write down what was noted; if the database is away, the next time does."""
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
        if not allowed and not self._told:
            log.warning("the use of keys is not recorded: GRANT UPDATE (last_used_at) ON api_keys to this role")
        self._told = not allowed
        return allowed

    async def _record_for_ever(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.record()
