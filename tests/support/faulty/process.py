"""Faults of the process: its start and end, memory, connections, metrics and identity."""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import sys
from typing import Any

from .exchange import App, Exchange, Fault

LEAKED_BYTES = 64 * 1024  # by each request
HELD_CONNECTIONS = 100
LOCK = (
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
    "LOCK TABLE llm_traces IN ACCESS EXCLUSIVE MODE",
)
LATENCY, SATURATION = b"storage_http_request_duration", (b"storage_pool_", b"storage_buffer_")


def service(module: str) -> Any:
    """Return a module of the service, which exists in the artifact only."""
    return importlib.import_module(f"storage_service.{module}")


class Exiting(Fault):
    """Its check succeeds, its start does not."""

    @classmethod
    def start(cls) -> None:
        if "--check" not in sys.argv:
            sys.exit("a fault at the start")


class IgnoringTheEnd(Fault):
    """SIGTERM has no effect."""

    @classmethod
    def start(cls) -> None:
        lifecycle = service("lifecycle")
        lifecycle.DrainingServer._on_signal = lambda _server: None


class LeakingMemory(Fault):
    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._kept: list[bytes] = []

    async def handle(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/v1/"):
            self._kept.append(os.urandom(LEAKED_BYTES))
        await exchange.pass_on()


class LeakingConnections(Fault):
    """A connection of the pool with each write, but the last one: the service still answers."""

    @classmethod
    def start(cls) -> None:
        buffer = service("buffer").WriteBuffer
        leaked: list[Any] = []
        write = buffer.write

        async def never_returned(self: Any, items: Any, **more: Any) -> None:
            pool = self._database._pool
            if len(leaked) < pool.max_size - 1:
                leaked.append(await pool.getconn())
            await write(self, items, **more)

        buffer.write = never_returned


class HoldingConnections(Fault):
    """Holds sessions outside of its pool, each in an open transaction: none are left for the other fleet."""

    late = True

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._held: list[Any] = []

    async def handle(self, exchange: Exchange) -> None:
        if exchange.write and len(self._held) < HELD_CONNECTIONS:
            await self._hold()
        await exchange.pass_on()

    async def _hold(self) -> None:
        """Take the next connection; where no session is left, keep those there are."""
        psycopg = importlib.import_module("psycopg")
        database = DATABASES[-1]
        try:
            arguments = {**database._connection_arguments(), "autocommit": False}
            connection = await psycopg.AsyncConnection.connect(database._conninfo, **arguments)
            await connection.execute("SELECT 1")
        except psycopg.Error:
            return
        self._held.append(connection)

    @classmethod
    def start(cls) -> None:
        database = service("database").Database
        initialize = database.__init__

        def noted(self: Any, *arguments: Any, **named: Any) -> None:
            DATABASES.append(self)
            initialize(self, *arguments, **named)

        database.__init__ = noted


DATABASES: list[Any] = []


class LockingTraces(HoldingConnections):
    """Locks the table of traces at its first write, in a transaction that does not end."""

    late = False

    async def handle(self, exchange: Exchange) -> None:
        if exchange.write and not self._held:
            await self._hold()
            for statement in LOCK:
                await self._held[0].execute(statement)
        await exchange.pass_on()


class MuteMetrics(Fault):
    """Exports less than it should."""

    hidden: tuple[bytes, ...] = ()

    async def handle(self, exchange: Exchange) -> None:
        if exchange.path != "/metrics":
            await exchange.pass_on()
            return
        status, body = await exchange.response()
        kept = [line for line in body.splitlines(keepends=True) if not any(name in line for name in self.hidden)]
        await exchange.answer(status, b"".join(kept), headers=())


class WithoutLatency(MuteMetrics):
    hidden = (LATENCY,)


class WithoutSaturation(MuteMetrics):
    hidden = SATURATION


class OtherVersion(Fault):
    """Names another version in its responses."""

    @classmethod
    def start(cls) -> None:
        uvicorn = importlib.import_module("uvicorn")
        initialize = uvicorn.Config.__init__

        def renamed(self: Any, *arguments: Any, **named: Any) -> None:
            named["headers"] = [("X-Observatory-Version", "v0.0.9"), *(named.get("headers") or [])[1:]]
            initialize(self, *arguments, **named)

        uvicorn.Config.__init__ = renamed


class WritingWithAnyScope(Fault):
    """A key that may only read may write too."""

    @classmethod
    def start(cls) -> None:
        service("auth").ApiKey.require = lambda _key, _scope: None


class SlowStart(Fault):
    """Ready after a while: not a fault."""

    @classmethod
    def start(cls) -> None:
        if "--check" not in sys.argv:
            signal.sigtimedwait([], 12)


class OneError(Fault):
    """One request fails, and no other: not a fault that a gate may act on."""

    late = True
    _failing = itertools.count(1)

    async def handle(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/v1/") and next(self._failing) == 30:
            raise RuntimeError("once")
        await exchange.pass_on()
