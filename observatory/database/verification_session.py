"""A session with the marked rows of one verification, of which no statement waits for ever.

A version that is verified may hold a lock on the tables, and is only stopped when its verification has ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import psycopg
from psycopg import errors as pg

from observatory.database.connection import connect, describe
from observatory.database.error_translation import translate_errors
from observatory.database.errors import RowsLockedError
from observatory.database.migrations.blocking_sessions import lock_holders
from observatory.database.verification_rows import MarkedRows, marked_rows

# A lock is waited for longer than jobs of TimescaleDB hold one; no statement of a verification takes a minute.
TIMEOUTS: Mapping[str, str] = {"lock_timeout": "10s", "statement_timeout": "5min"}


@contextlib.contextmanager
def verification_rows(conninfo: str) -> Iterator[MarkedRows]:
    """Yield the rows of one verification; then remove them and those of verifications that were killed.

    Args:
        conninfo: a direct connection as the role that owns the tables, or as a superuser.

    Raises:
        RowsLockedError: other sessions hold locks on the tables.
        DatabaseError: the database cannot be used for another reason.
    """
    with (
        connect(conninfo, purpose="verify a fleet", settings=TIMEOUTS) as connection,
        translate_errors(describe(conninfo)),
        _naming_holders(connection),
        marked_rows(connection) as rows,
    ):
        yield rows


@contextlib.contextmanager
def _naming_holders(connection: psycopg.Connection) -> Iterator[None]:
    try:
        yield
    except pg.LockNotAvailable as error:
        holders = lock_holders(connection)
        named = "; ".join(map(str, holders)) or "by sessions that have ended meanwhile"
        raise RowsLockedError(
            f"the tables are locked, and {TIMEOUTS['lock_timeout']} were not enough to get a lock: {named}",
            [holder.application for holder in holders],
        ) from error
