"""Sessions that run or read migrations: their settings, and the edition of the server's TimescaleDB."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import psycopg
from psycopg import errors as pg

from observatory.database.connection import connect, describe
from observatory.database.error_translation import error_summary, translate_errors
from observatory.database.errors import UnsuitableServerError
from observatory.database.migrations.files import Edition

LOCK_TIMEOUT_MS = 500

MIGRATION_SETTINGS: Mapping[str, str] = {
    # PostgreSQL queues every later query on the table behind a waiting ALTER, so the wait is short and then repeated.
    "lock_timeout": f"{LOCK_TIMEOUT_MS}ms",
    # An index build may take hours; the role's own limits are for everyday queries.
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # The server notices a killed deployment and releases its locks before the running statement ends.
    "client_connection_check_interval": "500ms",
    "search_path": "public",
}

_SERVER = """
    SELECT pg_is_in_recovery(), current_setting('timescaledb.license', true),
           EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')
"""


@contextlib.contextmanager
def session(
    conninfo: str, *, purpose: str, settings: Mapping[str, str]
) -> Iterator[tuple[psycopg.Connection, Edition]]:
    """Open a connection whose errors are translated, and determine the server's edition.

    Raises:
        UnreachableError: the connection failed or broke.
        UnsuitableServerError: a standby, or no TimescaleDB.
    """
    with connect(conninfo, purpose=purpose, settings=settings) as connection, translate_errors(describe(conninfo)):
        yield connection, server_edition(connection, conninfo)


def server_edition(connection: psycopg.Connection, conninfo: str) -> Edition:
    """Return the edition of the server's TimescaleDB.

    Raises:
        UnsuitableServerError: a standby, no TimescaleDB, or none whose library fits the database.
    """
    try:
        row = connection.execute(_SERVER).fetchone()
    except pg.UndefinedFile as error:
        raise UnsuitableServerError(
            f"{describe(conninfo)} needs a library of TimescaleDB that its server does not have: "
            f"{error_summary(error)}. Run `observatory up`, which updates the extension to the server's version"
        ) from error
    in_recovery, licence, has_extension = row or (False, None, False)
    if in_recovery:
        raise UnsuitableServerError(f"{describe(conninfo)} is a read-only standby. Connect to the primary")
    if not has_extension:
        raise UnsuitableServerError(
            f"{describe(conninfo)} has no TimescaleDB. Run CREATE EXTENSION timescaledb as superuser"
        )
    return "apache" if licence == "apache" else "community"
