"""A stack's database that was dropped or renamed while its server runs on.

`up` does not create it again: an empty database that takes requests would hide the loss. A rollback does, and replaces
it by the one of before.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress

import psycopg
from psycopg.conninfo import conninfo_to_dict

from observatory.database import UnreachableError, connect, ensure_database
from observatory.database.connection import with_database
from observatory.errors import REFUSED
from observatory.platforms.errors import OperationError
from observatory.platforms.platform import Platform
from observatory.platforms.stack_state import declared_schema, outputs
from observatory.progress import Phase, Progress, Reporter

# PostgreSQL gives the limit -2 to a database whose removal was interrupted: it accepts no connections.
_EXISTS = "SELECT FROM pg_database WHERE datname = %s AND datconnlimit <> -2"
_LEDGER = "SELECT to_regclass('observatory.schema_migrations') IS NOT NULL"


class DatabaseDroppedError(OperationError):
    """The stack's server runs, and its database is gone or empty; nothing was changed."""

    exit_code = REFUSED

    def __init__(self, name: str, found: str) -> None:
        super().__init__(
            f"the database {name!r} {found}",
            remedy="`observatory rollback --method database --to-time TIME` brings it back as it was at a time before "
            "(docs/backups.md). A renamed one can be named back instead.",
        )


def check_not_dropped(platform: Platform) -> None:
    """Raise DatabaseDroppedError if the database of a stack that was up is gone, or has no migrations any more."""
    if not _was_up(platform):
        return
    name = platform.settings.database.name
    if _is_dropped(platform):
        raise DatabaseDroppedError(name, "does not exist on the running server: it was dropped or renamed")
    if _is_empty(platform):
        raise DatabaseDroppedError(name, "has no ledger of migrations any more: it was dropped, or emptied")


def create_if_dropped(platform: Platform, report: Reporter) -> None:
    """Create a dropped database again, without tables; report it."""
    declared = declared_schema(platform)
    if declared is None or not _is_dropped(platform):
        return
    name, owner = platform.settings.database.name, str(conninfo_to_dict(declared["conninfo"])["user"])
    text = f"the database {name!r} was dropped: it is created empty, for the rollback to replace it"
    report(Progress(task=text, phase=Phase.WARNED))
    ensure_database(_server(platform), name=name, owner=owner)


def _was_up(platform: Platform) -> bool:
    """Return whether an `up` of the stack has come to its end; a first one may have ended before the migrations."""
    finished = platform.workspace.demonstrated.exists() and "admin_database_url" in outputs(platform)
    return finished and declared_schema(platform) is not None


def _server(platform: Platform) -> str:
    return str(outputs(platform)["admin_database_url"])


def _is_dropped(platform: Platform) -> bool:
    """Return whether the server runs and lacks the database; False where it does not respond."""
    with suppress(UnreachableError, psycopg.OperationalError), _session(_server(platform)) as session:
        return session.execute(_EXISTS, [platform.settings.database.name]).fetchone() is None
    return False


def _is_empty(platform: Platform) -> bool:
    conninfo = with_database(_server(platform), platform.settings.database.name)
    with suppress(UnreachableError, psycopg.OperationalError), _session(conninfo) as session:
        return session.execute(_LEDGER).fetchone() == (False,)
    return False


def _session(conninfo: str) -> AbstractContextManager[psycopg.Connection]:
    return connect(conninfo, purpose="find the database")
