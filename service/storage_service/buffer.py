"""Concurrent writes to one table share transactions.

A commit and the start of a COPY cost the same for ten rows as for a thousand. So while a transaction runs, the writes
that come wait, and the next one stores them all by one COPY; a lone write waits for nobody. Each write returns after
its commit, never earlier: nothing that was accepted is only in memory. A write that the database refuses fails alone.

Owns order, bounds and failures of the writes. Does not own SQL: that is in `tables`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import psycopg

from .database import Database
from .items import MAX_ITEMS, TimedItem
from .metrics import Metrics
from .problems import InvalidRequest, Problem, Unavailable
from .settings import Settings
from .tables import Table, store

MAX_TRANSACTIONS = 2
"""Of one table at once: one waits for its commit while the other's rows are sent."""
MAX_SHARED_ITEMS = MAX_ITEMS
"""Of a transaction that is shared: no neighbour makes it larger than the largest request may be."""


@dataclass(eq=False, kw_only=True)
class _Write:
    """One request's items, and the future of the commit that it waits for."""

    items: Sequence[TimedItem]
    entered: float = field(default_factory=time.monotonic)
    committed: asyncio.Future[None] = field(default_factory=asyncio.Future)

    def settle(self, failure: Exception | None) -> None:
        if self.committed.done():  # the request was cut off
            return
        if failure:
            self.committed.set_exception(failure)
        else:
            self.committed.set_result(None)


class WriteBuffer:
    """The writes of one table that are not committed yet; `STORAGE_BUFFER_ITEMS` bounds their items."""

    def __init__(self, settings: Settings, *, table: Table, database: Database, metrics: Metrics) -> None:
        self._settings = settings
        self.table = table
        self._database = database
        self._metrics = metrics
        self._size = metrics.buffer_size.labels(table.name)
        metrics.buffer_capacity.set(settings.buffer_items)
        self._items = 0
        self._waiting: deque[_Write] = deque()
        self._flushers: set[asyncio.Task[None]] = set()
        self._transactions = 0

    async def write(self, items: Sequence[TimedItem]) -> None:
        """Store items; returns after the commit.

        Raises:
            Unavailable: the buffer is full, or the database is away.
            InvalidRequest: the database refused the values of these items.
        """
        if self._items + len(items) > self._settings.buffer_items:
            raise Unavailable(f"{self._items} items wait to be stored in {self.table.name} already; try again")
        write = _Write(items=items)
        self._items += len(items)
        self._size.set(self._items)
        try:
            self._waiting.append(write)
            self._start_flusher()
            await write.committed
        finally:
            self._items -= len(items)
            self._size.set(self._items)

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
            # Here and not when the task is done: a write between the two would wait for a flusher that has ended.
            self._transactions -= 1

    def _take(self) -> list[_Write]:
        """Take the writes of the next transaction, oldest first; refuse those that waited too long."""
        taken: list[_Write] = []
        items = 0
        oldest = time.monotonic() - self._settings.database_timeout_seconds
        while self._waiting and (not taken or items + len(self._waiting[0].items) <= MAX_SHARED_ITEMS):
            write = self._waiting.popleft()
            if write.entered < oldest:
                write.settle(Unavailable("the database did not take the items in time; try again"))
                continue
            taken.append(write)
            items += len(write.items)
        return taken

    async def _flush(self, writes: Sequence[_Write]) -> None:
        """Store writes in one transaction; if the database refuses that, each in one of its own."""
        failure = await self._store([item for write in writes for item in write.items])
        if failure and len(writes) > 1 and _may_be_one_writes_fault(failure):
            for write in writes:
                await self._flush([write])
            return
        for write in writes:
            write.settle(failure)

    async def _store(self, items: Sequence[TimedItem]) -> Exception | None:
        """Store items in one transaction; return why it failed."""
        try:
            async with self._database.connection() as connection:
                await store(connection, self.table, self.table.rows(items))
        except Exception as error:
            status = "refused" if isinstance(error, InvalidRequest) else "error"
            self._metrics.flushes.labels(status).inc()
            return error
        self._metrics.flushes.labels("success").inc()
        return None


def _may_be_one_writes_fault(failure: Exception) -> bool:
    """Tell whether the database answered with a refusal: then the transaction is undone, and others may succeed.

    A lost connection (class 08), or a server that was told to stop (class 57), fails every write alike; and whether the
    transaction was committed is not known, so it must not be sent again by anybody but the client.
    """
    cause = failure.__cause__ if isinstance(failure, Problem) else None
    sqlstate = cause.sqlstate if isinstance(cause, psycopg.Error) else None
    return sqlstate is not None and not sqlstate.startswith(("08", "57"))
