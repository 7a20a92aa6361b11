"""The deployment lock: only one deployment at a time changes migrations, fleets and traffic of a stack.

The lock is reentrant, so that a workflow holds it over all of its steps. It needs the database. While the database is
down, no process can hold the lock; `rollback --method blue-green` works without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar

from observatory.platforms.platform import Platform
from observatory.platforms.stack_state import declared_schema
from observatory.workspace import Workspace

GONE_SECONDS = 3.0  # until PostgreSQL has noticed that a holder was killed

_held: ContextVar[frozenset[Workspace]] = ContextVar("deployment locks", default=frozenset())


@contextmanager
def deployment_lock(workspace: Workspace, conninfo: str, *, wait_s: float = 0) -> Iterator[None]:
    """Hold the deployment lock of a stack; PostgreSQL releases it when this process ends.

    Args:
        workspace: the stack's.
        conninfo: of its database, direct and not through a pooler.
        wait_s: how long to wait for another holder, in seconds.

    Raises:
        LockHeldError: a deployment is under way.
        UnreachableError: no connection.
    """
    from observatory.database import connect  # noqa: PLC0415 - psycopg only where it is used
    from observatory.database.advisory_locks import DEPLOYMENT_LOCK, session_lock  # noqa: PLC0415

    if workspace in _held.get():
        yield
        return
    with (
        connect(conninfo, purpose="deployment") as connection,
        session_lock(connection, DEPLOYMENT_LOCK, wait_s=wait_s),
    ):
        before = _held.set(_held.get() | {workspace})
        try:
            yield
        finally:
            _held.reset(before)


@contextmanager
def no_deployment_under_way(platform: Platform) -> Iterator[None]:
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
                lock = deployment_lock(platform.workspace, declared["conninfo"], wait_s=GONE_SECONDS)
                held.enter_context(lock)
        yield
