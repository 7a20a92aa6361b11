"""Shared transactions for concurrent writes to one table.

A commit and the start of a COPY cost the same for ten rows as for a thousand. Writes that arrive while transactions
run therefore wait, and the next transaction stores them all with one COPY. A write without concurrent writes starts at
once. Each write returns after its commit, so accepted items are never in memory only. A write with values that the
database rejects fails alone.

Owns order, limits and failures of the writes. Does not own SQL, which is in `tables`.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import psycopg

from .database import Database
from .fairness import FairShare, RoundRobin
from .items import MAX_ITEMS, TimedItem
from .metrics import Metrics
from .problems import InvalidRequest, Problem, Unavailable
from .settings import Settings
from .tables import Table, store

MAX_TRANSACTIONS = 2
"""Concurrent transactions of one table: one waits for its commit while the rows of the other are sent."""
MAX_SHARED_ITEMS = MAX_ITEMS
"""Items in one shared transaction: no more than the largest request may have."""


@dataclass(eq=False, kw_only=True)
class _Write:
    """The items of one request, and the future that its commit completes."""

    items: Sequence[TimedItem]
    entered: float = field(default_factory=time.monotonic)
    committed: asyncio.Future[None] = field(default_factory=asyncio.Future)

    def settle(self, failure: Exception | None) -> None:
        if self.committed.done():  # the request was cancelled
            return
        if failure:
            self.committed.set_exception(failure)
        else:
            self.committed.set_result(None)


class WriteBuffer:
    """The uncommitted writes of one table; `STORAGE_BUFFER_ITEMS` limits their items."""

    def __init__(self, settings: Settings, *, table: Table, database: Database, metrics: Metrics) -> None:
        self._settings = settings
        self.table = table
        self._database = database
        self._metrics = metrics
        self._size = metrics.buffer_size.labels(table.name)
        metrics.buffer_capacity.set(settings.buffer_items)
        self._items = FairShare(settings.buffer_items)
        self._waiting: RoundRobin[_Write] = RoundRobin()
        self._flushers: set[asyncio.Task[None]] = set()
        self._transactions = 0
        self._expect_repeated = False

    async def write(self, items: Sequence[TimedItem], *, key: str) -> None:
        """Store items of a key; returns after the commit.

        Raises:
            Unavailable: the buffer is full, or the database is not available.
            InvalidRequest: the database rejected the values of these items.
        """
        if not self._items.fits(key, len(items)):
            raise Unavailable(
                f"{self._items.held} items wait to be stored in {self.table.name}; send the request again"
            )
        write = _Write(items=items)
        try:
            with self._items.holding(key, len(items)):
                self._size.set(self._items.held)
                self._waiting.push(key, write)
                self._start_flusher()
                await write.committed
        finally:
            self._size.set(self._items.held)

    def _start_flusher(self) -> None:
        if self._transactions < MAX_TRANSACTIONS:
            self._transactions += 1
            flusher = asyncio.create_task(self._flush_all())
            self._flushers.add(flusher)
            flusher.add_done_callback(self._flushers.discard)

    async def _flush_all(self) -> None:
        try:
            while writes := self._take():
                await self._flush(writes)
        finally:
            # Not in a callback of the task: a write between the two would wait for a flusher that has ended.
            self._transactions -= 1

    def _take(self) -> list[_Write]:
        """Return the writes of the next transaction, in which keys take turns; fails those that waited too long."""
        taken: list[_Write] = []
        items = 0
        oldest = time.monotonic() - self._settings.database_timeout_seconds
        while self._waiting and (not taken or items + len(self._waiting.peek().items) <= MAX_SHARED_ITEMS):
            write = self._waiting.pop()
            if write.entered < oldest:
                write.settle(Unavailable("the database did not store the items in time; send the request again"))
                continue
            taken.append(write)
            items += len(write.items)
        return taken

    async def _flush(self, writes: Sequence[_Write]) -> None:
        """Store writes in one transaction; if the database rejects it, store each write in its own."""
        failure = await self._store([item for write in writes for item in write.items])
        if failure and len(writes) > 1 and _is_rejection(failure):
            for write in writes:
                await self._flush([write])
            return
        for write in writes:
            write.settle(failure)

    async def _store(self, items: Sequence[TimedItem]) -> Exception | None:
        """Store items in one transaction; returns the failure, or None."""
        try:
            async with self._database.connection() as connection:
                rows = self.table.rows(items)
                new = await store(connection, self.table, rows, expect_repeated=self._expect_repeated)
        except Exception as error:
            status = "refused" if isinstance(error, InvalidRequest) else "error"
            self._metrics.flushes.labels(status).inc()
            return error
        self._metrics.flushes.labels("success").inc()
        self._metrics.repeated.labels(self.table.name).inc(len(items) - new)
        # Clients that send a span at its start and at its end repeat many: COPY would fail for most transactions.
        self._expect_repeated = new < len(items)
        return None


def _is_rejection(failure: Exception) -> bool:
    """Return whether the database rejected the transaction: it is rolled back then, and single writes may succeed.

    A lost connection (class 08) or a server that shuts down (class 57) fails every write. Whether the transaction was
    committed is unknown, so only the client may send its items again.
    """
    cause = failure.__cause__ if isinstance(failure, Problem) else None
    sqlstate = cause.sqlstate if isinstance(cause, psycopg.Error) else None
    return sqlstate is not None and not sqlstate.startswith(("08", "57"))
