"""The deployment lock: one at a time over migrations, fleets and traffic, whoever begins it.

What runs inside a deployment takes it again for nothing, so that a workflow holds it over all of its steps. Needs the
database: where that is away nobody can hold it, and `rollback --method blue-green` goes without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar

from observatory.operations.state import declared_schema
from observatory.workspace import Workspace

GONE_SECONDS = 3.0  # until PostgreSQL has noticed that a holder was killed

_held: ContextVar[frozenset[Workspace]] = ContextVar("deployment locks", default=frozenset())


@contextmanager
def deployment_lock(workspace: Workspace, conninfo: str, *, wait_s: float = 0) -> Iterator[None]:
    """Hold the deployment lock of a stack; PostgreSQL frees it when this process ends.

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
def no_deployment_meanwhile(workspace: Workspace) -> Iterator[None]:
    """Hold the deployment lock where there is a database to hold it in; one that is away keeps nobody from mending it.

    Raises:
        LockHeldError: a deployment is under way.
    """
    import psycopg  # noqa: PLC0415 - only where it is used

    from observatory.database import UnreachableError  # noqa: PLC0415

    declared = declared_schema(workspace)
    with ExitStack() as held:
        if declared is not None:
            with suppress(UnreachableError, psycopg.OperationalError):  # away, or going while it was asked
                lock = deployment_lock(workspace, declared["conninfo"], wait_s=GONE_SECONDS)
                held.enter_context(lock)
        yield
