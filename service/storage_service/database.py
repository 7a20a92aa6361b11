"""Connections to the database: the bounded pool, and the monitor of the database's condition.

Owns time limits and the translation of the driver's errors into problems. Does not own queries, which are in `tables`,
`costs` and `auth`.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from .fairness import Turns
from .logs import describe
from .problems import FieldError, InvalidRequest, Unavailable
from .release import RELEASE
from .settings import Settings

CONNECT_TIMEOUT_S = 3
RECONNECT_TIMEOUT_S = 5  # the pool doubles its pause between attempts, and starts over after this time
RESERVED_CONNECTIONS = 3
"""Connections of the pool that reads leave to writes and to lookups of keys, if it has as many."""
MONITOR_INTERVAL_S = 1.0
MONITOR_TIMEOUT_S = 3.0
# An interrupted migration does not count, nor does an own one (from 500 on) for one of the product. Migrations after
# `schema_max` only add to the schema, unless their header has `-- phase: contract`.
LEDGER_QUERY = r"""
    SELECT max(version) FILTER (WHERE (version < 500) = (%s < 500)), min(version) FILTER (
        WHERE version > %s AND source ~ '(?n)^--[ \t]*phase[ \t]*:[ \t]*contract[ \t\r]*$')
    FROM observatory.schema_migrations WHERE statements_done = statements_total
"""

Connection = psycopg.AsyncConnection[Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """The latest result of the monitor.

    Attributes:
        reachable: whether the database responds.
        schema_version: highest applied migration; None if there is none or it is not known.
        detail: reason why the database cannot be used; empty if it can.
    """

    reachable: bool
    schema_version: int | None = None
    detail: str = ""

    @property
    def usable(self) -> bool:
        """Whether the database responds and this release works with its schema."""
        return not self.detail


class Database:
    """The connection pool, and the database's condition."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._conninfo = make_conninfo(
            settings.database_url,
            application_name=f"{RELEASE.name} {settings.fleet} {RELEASE.version}",
            connect_timeout=CONNECT_TIMEOUT_S,
            # Detects a lost peer within these seconds; the kernel's default is a quarter of an hour.
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=15_000,
        )
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            self._conninfo,
            kwargs=self._connection_arguments,
            min_size=settings.pool_min,
            max_size=settings.pool_max,
            timeout=settings.pool_timeout_seconds,
            max_waiting=settings.max_pending_writes,
            reconnect_timeout=RECONNECT_TIMEOUT_S,
            check=self._check,
            open=False,
            name="storage",
        )
        self._reads = Turns(max(1, settings.pool_max - RESERVED_CONNECTIONS))
        self._monitor_task: asyncio.Task[None] | None = None
        self._login_of_pool: dict[str, Any] = {}
        self.condition = Condition(reachable=False, detail="not reached yet")

    async def open(self) -> None:
        """Start connecting; does not wait for the database, which may start after the service."""
        await self._pool.open(wait=False)
        self._monitor_task = asyncio.create_task(self._monitor())

    async def close(self) -> None:
        """Close every connection."""
        if self._monitor_task:
            self._monitor_task.cancel()
            await asyncio.gather(self._monitor_task, return_exceptions=True)
        await self._pool.close()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection in autocommit mode.

        Raises:
            Unavailable: no connection was free in time, or the database is not available or failed.
            InvalidRequest: the database rejected the values.
        """
        try:
            async with asyncio.timeout(self._settings.database_timeout_seconds), self._pool.connection() as connection:
                yield connection
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            log.warning("the database rejected the values of a request", exc_info=True)
            field = error.diag.column_name or error.diag.constraint_name or "items"
            reason = f"was rejected by the database: {describe(error)}"
            raise InvalidRequest([FieldError(field=field, reason=reason)]) from error
        except (TooManyRequests, PoolTimeout) as error:
            raise Unavailable("no database connection was free in time; send the request again") from error
        except (psycopg.Error, TimeoutError) as error:
            log.exception("the database failed or did not respond in time")
            raise Unavailable("the database failed or did not respond in time; send the request again") from error

    @contextlib.asynccontextmanager
    async def reading(self, key: str) -> AsyncIterator[Connection]:
        """Lend a connection for a read of an API key; keys take turns, and writes find a free connection meanwhile.

        Raises:
            Unavailable: no connection was free in time, or the database is not available or failed.
        """
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._settings.pool_timeout_seconds):
                    await stack.enter_async_context(self._reads.turn(key))
            except TimeoutError:
                raise Unavailable("no database connection was free in time; send the request again") from None
            yield await stack.enter_async_context(self.connection())

    def connections_in_use(self) -> int:
        """Return the number of connections that requests use now."""
        state = self._pool.get_stats()
        return state["pool_size"] - state["pool_available"]

    async def _check(self, connection: Connection) -> None:
        """Check a connection before a request uses it; if it is broken, replace every connection of the pool.

        The server has closed the others too. Otherwise the pool would find them one by one, with a growing pause.
        """
        try:
            await AsyncConnectionPool.check_connection(connection)
        except psycopg.Error:
            await self._pool.drain()
            raise

    def _connection_arguments(self) -> dict[str, Any]:
        """Return the arguments of one connection; reads the password file each time, so the password can be rotated."""
        # A transaction pooler shares sessions among clients, so a session must not keep prepared statements.
        return {"autocommit": True, "prepare_threshold": None, **self._login()}

    def _login(self) -> dict[str, str]:
        """Return the password, and the user if the file names one."""
        path = self._settings.database_password_file
        if path is None:
            return {}
        user, _, password = path.read_text(encoding="utf-8").rstrip("\n").rpartition("\n")
        return {"user": user, "password": password} if user else {"password": password}

    async def _monitor(self) -> None:
        """Read the schema version each second, on a connection outside the pool, which requests cannot exhaust."""
        while not _is_cancelled():
            with contextlib.suppress(psycopg.Error, OSError, TimeoutError):
                await self._monitor_connection()
            await asyncio.sleep(MONITOR_INTERVAL_S)

    async def _monitor_connection(self) -> None:
        arguments = self._connection_arguments()
        try:
            async with asyncio.timeout(MONITOR_TIMEOUT_S):
                connection = await Connection.connect(self._conninfo, **arguments)
            async with connection:
                await self._follow_login(arguments)
                await self._pool.check()
                while arguments == self._connection_arguments() and not _is_cancelled():
                    self._note(await self._schema_condition(connection))
                    await asyncio.sleep(MONITOR_INTERVAL_S)
        except (psycopg.Error, OSError, TimeoutError) as error:
            self._note(Condition(reachable=False, detail=describe(error)))
            raise

    async def _follow_login(self, arguments: dict[str, Any]) -> None:
        """Replace the pool's connections if they use another login than the one that has just connected."""
        if self._login_of_pool not in ({}, arguments):
            log.info("the database login has changed; replacing all connections")
            await self._pool.drain()
        self._login_of_pool = arguments

    async def _schema_condition(self, connection: Connection) -> Condition:
        limits = [RELEASE.schema_min, RELEASE.schema_max]
        try:
            async with asyncio.timeout(MONITOR_TIMEOUT_S):
                row = await (await connection.execute(LEDGER_QUERY, limits)).fetchone()
        except psycopg.ProgrammingError as error:
            return Condition(reachable=True, detail=f"cannot read observatory.schema_migrations: {describe(error)}")
        version, contracted = row or (None, None)
        detail = ""
        if version is None or version < RELEASE.schema_min:
            expected = f"expected at least {RELEASE.schema_min}"
            detail = f"schema version is {version}, {expected}: apply the pending migrations"
        elif contracted is not None:
            supported = f"this release supports schema versions up to {RELEASE.schema_max}"
            detail = f"migration {contracted} is a contract migration, and {supported}: deploy a newer release"
        return Condition(reachable=True, schema_version=version, detail=detail)

    def _note(self, condition: Condition) -> None:
        if condition != self.condition:
            level = logging.INFO if condition.usable else logging.WARNING
            log.log(level, "database condition changed", extra={"fields": vars(condition)})
        self.condition = condition


def _is_cancelled() -> bool:
    """Return whether this task was cancelled.

    When a query is cancelled, the driver first ends it, and an error of the query replaces the CancelledError
    (`psycopg.AsyncConnection.wait`). The task still counts the cancellation.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
