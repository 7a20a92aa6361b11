"""The deployment lock: only one deployment at a time changes migrations, fleets and traffic of a stack.

The lock is reentrant, so that a workflow holds it over all of its steps. It needs the database. While the database is
down, no process can hold the lock; `rollback --method blue-green` works without it. Its session has the operator, the
host and the command as its name, which messages and `pg_stat_activity` show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from observatory.delivery.errors import LockLostError
from observatory.documents.journal import FileJournal
from observatory.platforms.platform import Platform
from observatory.platforms.stack_state import declared_schema
from observatory.progress import silent
from observatory.security.actor import actor
from observatory.workspace import Workspace

if TYPE_CHECKING:
    import psycopg

GONE_SECONDS = 3.0  # until PostgreSQL has noticed that a holder was killed
ANSWER_SECONDS = 2.0  # for the database's answer to a check, and for a new connection

_NONE: Mapping[Workspace, HeldDeploymentLock] = MappingProxyType({})
_held: ContextVar[Mapping[Workspace, HeldDeploymentLock]] = ContextVar("deployment locks", default=_NONE)
_wait_s: ContextVar[float] = ContextVar("wait for the deployment lock", default=0.0)


@contextmanager
def waiting_for_lock(seconds: float) -> Iterator[None]:
    """Let every operation of the block wait so many seconds for the deployment lock, if another process holds it."""
    before = _wait_s.set(seconds)
    try:
        yield
    finally:
        _wait_s.reset(before)


class HeldDeploymentLock:
    """The lock that this process holds, on a connection that may be lost."""

    def __init__(self, conninfo: str, command: str) -> None:
        self._conninfo = conninfo
        user, _, host = actor().partition("@")
        self._purpose = f"{user}@{host.partition('.')[0]}: {command}"
        self._open, self._session = ExitStack(), _no_session()
        self._connection: psycopg.Connection | None = None
        self._pinged = self._lost = self._silent = False
        self._mark = ""

    def acquire(self, wait_s: float) -> None:
        """Take the lock; raises LockHeldError, UnreachableError, StatementFailedError (the ledger is unreadable)."""
        from observatory.database import LockHeldError, connect  # noqa: PLC0415 - psycopg only where it is used
        from observatory.database.advisory_locks import DEPLOYMENT_LOCK, session_lock  # noqa: PLC0415
        from observatory.database.connection import describe  # noqa: PLC0415
        from observatory.database.error_translation import translate_errors  # noqa: PLC0415

        with ExitStack() as opened:
            connection = opened.enter_context(connect(self._conninfo, purpose=self._purpose))
            try:
                opened.enter_context(session_lock(connection, DEPLOYMENT_LOCK, wait_s=wait_s))
            except LockHeldError as error:
                raise LockHeldError(f"{error}. --wait SECONDS waits for it") from error
            with translate_errors(describe(self._conninfo)):
                self._keep(connection, opened)

    def note_own_changes(self) -> None:
        """Keep what this process has changed in the schema under the lock; without an answer, a check finds it."""
        import psycopg  # noqa: PLC0415 - only where it is used

        from observatory.database.schema_mark import schema_mark  # noqa: PLC0415

        if self._connection and not self._lost and not self._pinged:
            with suppress(psycopg.Error):
                self._mark = schema_mark(self._connection)

    def release(self) -> None:
        """Release the lock, if it is still held, and close the connection."""
        if self._connection and self._lost:
            self._connection.close()  # a query on it would fail, or never end
        self._open.close()

    def check(self, record: Callable[..., None]) -> None:
        """Check that no other process holds the lock; take it again where it was lost and is free.

        A database that does not respond is no loss: no other process can take the lock then.

        Args:
            record: writes an event to the journal.

        Raises:
            LockLostError: another process holds the lock; the message has its operator, host, command and start. Or one
                had it meanwhile, and migrated the database.
        """
        self._lost = not self._responds()
        if not self._lost:
            self._silent = False
            return
        from observatory.database import UnreachableError, connect  # noqa: PLC0415 - psycopg only where it is used
        from observatory.database.connection import with_parameters  # noqa: PLC0415

        quick = with_parameters(self._conninfo, connect_timeout=int(ANSWER_SECONDS))
        with ExitStack() as opened:
            try:
                connection = opened.enter_context(connect(quick, purpose=self._purpose))
            except UnreachableError as error:
                self._record_silence(record, str(error))
                return
            self._regain(connection, opened, record)

    def _regain(self, connection: psycopg.Connection, opened: ExitStack, record: Callable[..., None]) -> None:
        """Take the lock on a new connection, unless the old one has it after all; raises LockLostError."""
        from observatory.database.advisory_locks import DEPLOYMENT_LOCK, holder_of, poll_lock  # noqa: PLC0415
        from observatory.database.schema_mark import schema_mark  # noqa: PLC0415

        if poll_lock(connection, DEPLOYMENT_LOCK, GONE_SECONDS):
            if schema_mark(connection) != self._mark:
                reason = (
                    "the deployment lock was lost with its connection to the database, and before it was taken again "
                    "another command has changed the schema: `observatory deploy database --info` "
                    "shows it"
                )
                record("lock-lost", reason=reason)
                raise LockLostError(reason)
            record("lock-regained", reason="its connection to the database was lost, and no other process has taken it")
            self._keep(connection, opened)
            return
        holder = holder_of(connection, DEPLOYMENT_LOCK)
        if holder is None or (holder.pid, holder.since) == self._session:
            return
        reason = f"the deployment lock was lost with its connection to the database, and {holder} holds it now"
        record("lock-lost", reason=reason)
        raise LockLostError(reason)

    def _keep(self, connection: psycopg.Connection, opened: ExitStack) -> None:
        from observatory.database.advisory_locks import DEPLOYMENT_LOCK, holder_of  # noqa: PLC0415
        from observatory.database.schema_mark import schema_mark  # noqa: PLC0415

        self._mark = schema_mark(connection)
        holder = holder_of(connection, DEPLOYMENT_LOCK)
        self._session = (holder.pid, holder.since) if holder else _no_session()
        self.release()
        self._open, self._connection = opened.pop_all(), connection
        self._pinged = self._lost = self._silent = False

    def _record_silence(self, record: Callable[..., None], reason: str) -> None:
        """Record once that the database does not respond."""
        if not self._silent:
            record("lock-unknown", reason=f"{reason}. No other process can take the lock meanwhile")
        self._silent = True

    def _responds(self) -> bool:
        """Return whether the database responds on the lock's connection, which then holds the lock.

        Never waits longer than `ANSWER_SECONDS`: psycopg's own queries wait for as long as the server is silent.
        """
        from observatory.database.ping import answered  # noqa: PLC0415 - psycopg only where it is used

        if self._connection is None:
            return False
        found = answered(self._connection, sent=self._pinged, timeout_s=ANSWER_SECONDS)
        self._pinged = found is None
        return bool(found)


def _no_session() -> tuple[int, Any]:
    return (0, None)


@contextmanager
def deployment_lock(
    workspace: Workspace, conninfo: str, *, command: str, wait_s: float = 0
) -> Iterator[HeldDeploymentLock]:
    """Hold the deployment lock of a stack; PostgreSQL releases it when this process ends.

    Where this process holds it already, it is checked, and released by the outer block.

    Args:
        workspace: the stack's.
        conninfo: of its database, direct and not through a pooler.
        command: what the lock is for, as messages to others name it.
        wait_s: how long to wait for another holder, in seconds; longer where `waiting_for_lock` says so.

    Raises:
        LockHeldError: a deployment is under way.
        LockLostError: this process held the lock, and another one has it now.
        UnreachableError: no connection.
    """
    if outer := _held.get().get(workspace):
        outer.check(FileJournal(workspace.journal, silent).record)
        try:
            yield outer
        finally:
            outer.note_own_changes()
        return
    held = HeldDeploymentLock(conninfo, command)
    held.acquire(max(wait_s, _wait_s.get()))
    before = _held.set({**_held.get(), workspace: held})
    try:
        yield held
    finally:
        _held.reset(before)
        held.release()


@contextmanager
def unshared_deployment_lock(conninfo: str, *, command: str, wait_s: float = 0) -> Iterator[None]:
    """Hold the deployment lock of a database that has no stack here; it is not reentrant.

    Args:
        conninfo: of the database, direct and not through a pooler.
        command: what the lock is for, as messages to others name it.
        wait_s: how long to wait for another holder, in seconds; longer where `waiting_for_lock` says so.

    Raises:
        LockHeldError: a deployment is under way.
        UnreachableError: no connection.
    """
    held = HeldDeploymentLock(conninfo, command)
    held.acquire(max(wait_s, _wait_s.get()))
    try:
        yield
    finally:
        held.release()


@contextmanager
def no_deployment_under_way(platform: Platform, *, command: str) -> Iterator[None]:
    """Hold the deployment lock; without it where the database is down or not created yet, so that `up` can repair it.

    Raises:
        LockHeldError: a deployment is under way.
    """
    import psycopg  # noqa: PLC0415 - only where it is used

    from observatory.database import UnreachableError  # noqa: PLC0415

    declared = declared_schema(platform)
    with ExitStack() as held:
        if declared is not None:
            with suppress(UnreachableError, psycopg.OperationalError):  # down, or stopping just now
                lock = deployment_lock(platform.workspace, declared["conninfo"], command=command, wait_s=GONE_SECONDS)
                held.enter_context(lock)
        yield


@contextmanager
def no_migration_under_way(conninfo: str) -> Iterator[None]:
    """Hold the migration lock of a database.

    Raises:
        LockHeldError: a migration is under way.
        UnreachableError: the connection failed.
    """
    from observatory.database import connect  # noqa: PLC0415 - psycopg only where it is used
    from observatory.database.advisory_locks import MIGRATION_LOCK, session_lock  # noqa: PLC0415

    with (
        connect(conninfo, purpose="no migrations") as connection,
        session_lock(connection, MIGRATION_LOCK, wait_s=GONE_SECONDS),
    ):
        yield
