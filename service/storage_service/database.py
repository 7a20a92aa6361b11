"""Connections to the database: the bounded pool, and the watch that tells whether the database can be used.

Owns time limits and the translation of the driver's errors into refusals. Does not own what is asked:
that is in `tables` and `auth`.
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

from .logs import describe
from .problems import FieldError, InvalidRequest, Unavailable
from .release import RELEASE
from .settings import Settings

CONNECT_TIMEOUT_S = 3
RECONNECT_TIMEOUT_S = 5  # the pool waits ever longer between attempts until it starts anew
WATCH_INTERVAL_S = 1.0
WATCH_TIMEOUT_S = 3.0
# A migration that was interrupted does not count yet. Later ones than this release knows only add to the schema, unless
# their header says `-- phase: contract`.
LEDGER_QUERY = r"""
    SELECT max(version), min(version) FILTER (
        WHERE version > %s AND source ~ '(?n)^--[ \t]*phase[ \t]*:[ \t]*contract[ \t\r]*$')
    FROM observatory.schema_migrations WHERE statements_done = statements_total
"""

Connection = psycopg.AsyncConnection[Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What the watch saw last.

    Attributes:
        reachable: the database answered.
        schema_version: highest version in the ledger of migrations; None if there is none or it is not known.
        detail: what is wrong; empty if the database can be used.
    """

    reachable: bool
    schema_version: int | None = None
    detail: str = ""

    @property
    def usable(self) -> bool:
        """The database answers, and its schema is one that this release works with."""
        return not self.detail


class Database:
    """The database as the service sees it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._conninfo = make_conninfo(
            settings.database_url,
            application_name=f"{RELEASE.name} {settings.fleet} {RELEASE.version}",
            connect_timeout=CONNECT_TIMEOUT_S,
            # A peer that vanished without a word is noticed within these seconds, not the kernel's quarter of an hour.
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
        self._watcher: asyncio.Task[None] | None = None
        self._login_of_pool: dict[str, Any] = {}
        self.condition = Condition(reachable=False, detail="not reached yet")

    async def open(self) -> None:
        """Start to connect; does not wait for the database, which may come later than the service."""
        await self._pool.open(wait=False)
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Close every connection."""
        if self._watcher:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._pool.close()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection in autocommit mode.

        Raises:
            Unavailable: none was free in time, or the database is away or refuses for a reason of its own.
            InvalidRequest: the database refused the values.
        """
        try:
            async with asyncio.timeout(self._settings.database_timeout_seconds), self._pool.connection() as connection:
                yield connection
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            log.warning("database refused values", exc_info=True)
            field = error.diag.column_name or error.diag.constraint_name or "items"
            raise InvalidRequest([FieldError(field=field, reason=f"was refused: {describe(error)}")]) from error
        except (TooManyRequests, PoolTimeout) as error:
            raise Unavailable("every database connection is busy or the database is away; try again") from error
        except (psycopg.Error, TimeoutError) as error:
            log.exception("database failed")
            raise Unavailable("the database cannot answer now; try again") from error

    def lent(self) -> int:
        """Return how many connections are lent now."""
        state = self._pool.get_stats()
        return state["pool_size"] - state["pool_available"]

    async def _check(self, connection: Connection) -> None:
        """Check a connection before it is lent; if it is lost, the server went away and the others are lost as well.

        Without that the pool would find them one by one, with a growing pause after each.
        """
        try:
            await AsyncConnectionPool.check_connection(connection)
        except psycopg.Error:
            await self._pool.drain()
            raise

    def _connection_arguments(self) -> dict[str, Any]:
        """Arguments of one connection; the password file is read each time, so that a password can be rotated."""
        # Prepared statements are state of a session, which a transaction pooler shares among clients.
        return {"autocommit": True, "prepare_threshold": None, **self._login()}

    def _login(self) -> dict[str, str]:
        """Return the password, and the user where the file names one."""
        path = self._settings.database_password_file
        if path is None:
            return {}
        user, _, password = path.read_text(encoding="utf-8").rstrip("\n").rpartition("\n")
        return {"user": user, "password": password} if user else {"password": password}

    async def _watch(self) -> None:
        """Ask for the schema version each second, on a connection that no burst of requests can take."""
        while not _is_cancelled():
            with contextlib.suppress(psycopg.Error, OSError, TimeoutError):
                await self._watch_connection()
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def _watch_connection(self) -> None:
        arguments = self._connection_arguments()
        try:
            async with asyncio.timeout(WATCH_TIMEOUT_S):
                connection = await Connection.connect(self._conninfo, **arguments)
            async with connection:
                await self._follow_login(arguments)
                await self._pool.check()
                while arguments == self._connection_arguments() and not _is_cancelled():
                    self._note(await self._schema_condition(connection))
                    await asyncio.sleep(WATCH_INTERVAL_S)
        except (psycopg.Error, OSError, TimeoutError) as error:
            self._note(Condition(reachable=False, detail=describe(error)))
            raise

    async def _follow_login(self, arguments: dict[str, Any]) -> None:
        """Replace the pool's connections when the login, which has just been tried, is another than theirs."""
        if self._login_of_pool not in ({}, arguments):
            log.info("the database login has changed; every connection is made anew")
            await self._pool.drain()
        self._login_of_pool = arguments

    async def _schema_condition(self, connection: Connection) -> Condition:
        try:
            async with asyncio.timeout(WATCH_TIMEOUT_S):
                row = await (await connection.execute(LEDGER_QUERY, [RELEASE.schema_max])).fetchone()
        except psycopg.ProgrammingError as error:
            return Condition(reachable=True, detail=f"the ledger of migrations cannot be read: {describe(error)}")
        version, contracted = row or (None, None)
        detail = ""
        if version is None or version < RELEASE.schema_min:
            detail = f"schema version is {version}, expected {RELEASE.schema_min} at least"
        elif contracted is not None:
            detail = f"migration {contracted} took away what this release needs: it knows schema {RELEASE.schema_max}"
        return Condition(reachable=True, schema_version=version, detail=detail)

    def _note(self, condition: Condition) -> None:
        if condition != self.condition:
            level = logging.INFO if condition.usable else logging.WARNING
            log.log(level, "database condition changed", extra={"fields": vars(condition)})
        self.condition = condition


def _is_cancelled() -> bool:
    """Tell whether this task was asked to end.

    The driver, cancelled in a query, first ends that query; an error of it takes the cancellation's place
    (`psycopg.AsyncConnection.wait`). The request itself stays known to the task.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
