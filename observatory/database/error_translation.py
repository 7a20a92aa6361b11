"""Translates psycopg's exceptions into `observatory.database.errors`. Does not decide about retries."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import psycopg
from psycopg import errors as pg

from observatory.database.errors import DatabaseError, StatementFailedError, UnreachableError, UnsuitableServerError
from observatory.database.excerpts import EXCERPT_LENGTH, excerpt

_LOST = (pg.AdminShutdown, pg.CrashShutdown, pg.CannotConnectNow, pg.IdleSessionTimeout)

_FUNCTION = re.compile(r"(PL/pgSQL|SQL|PL/\w+) function ")
_BLOCK = "inline_code_block"  # the body of a DO, whose line is the place of the error

_REMEDY = "Nothing of it was applied. Correct it and run again"
_ROWS_REMEDY = "Nothing of it was applied. Correct the rows in the statement or in one before it, then run again"
_DAMAGED = "A file of the database is damaged: see docs/runbooks/StorageBackupDamaged.md"

_REMEDIES: dict[type[psycopg.Error], str] = {
    pg.DiskFull: "Free space on the server's disk, then run again",
    pg.OutOfMemory: "Give the server more memory or split the statement, then run again",
    pg.ActiveSqlTransaction: (
        "Nothing of the file was applied. Move the statement to its own file with the first line "
        "'-- transaction: false', then run again"
    ),
    pg.InvalidTransactionTermination: (
        "Nothing of the file was applied. COMMIT and ROLLBACK in a block or procedure need a file with the first line "
        "'-- transaction: false'. Move the statement into one, then run again"
    ),
    pg.UnsafeNewEnumValueUsage: (
        "Nothing of the file was applied. A new value of an enum can be used after the transaction that adds it. Move "
        "ALTER TYPE … ADD VALUE to its own file before this one, or write '-- transaction: false' as the first line, "
        "then run again"
    ),
    pg.ObjectInUse: (
        "Nothing of it was applied. Write SET CONSTRAINTS ALL IMMEDIATE before the statement where deferred "
        "constraints are pending, else end what uses the object, then run again"
    ),
    pg.DependentObjectsStillExist: (
        "Nothing of it was applied. Drop or change the named objects before it, in the same file, then run again"
    ),
    pg.QueryCanceled: (
        "Nothing of it was applied. Another session cancelled it, or a statement_timeout that the file sets. Run again"
    ),
    pg.InsufficientPrivilege: "Connect as the role that owns the objects, or grant the missing privilege",
    pg.DataCorrupted: _DAMAGED,
    pg.IndexCorrupted: _DAMAGED,
    pg.TooManyConnections: "Close sessions or raise max_connections, then run again",
}


@contextlib.contextmanager
def translate_errors(place: str, *, remedy: str = _REMEDY) -> Iterator[None]:
    """Translate psycopg's exceptions inside the block.

    Args:
        place: the operation, or `file:line:column`; starts the message.
        remedy: what to do, where the exception itself does not determine it.

    Raises:
        UnreachableError: the connection broke.
        UnsuitableServerError: the server is read-only.
        StatementFailedError: PostgreSQL rejected the statement for any other reason.
    """
    try:
        yield
    except psycopg.Error as error:
        raise _translate(error, place, remedy) from error


def error_summary(error: psycopg.Error) -> str:
    """Return PostgreSQL's message in one line, with detail, hint and SQLSTATE where it has them.

    The message and the detail may quote SQL or a value of any size, so only their start is returned.
    """
    diagnostic = error.diag
    if diagnostic.message_primary is None:
        return excerpt(str(error), 2 * EXCERPT_LENGTH).rstrip(".?")
    quoted = [excerpt(part) for part in (diagnostic.message_primary, diagnostic.message_detail) if part]
    if frame := _frame(diagnostic):
        quoted.append(f"in {frame}")
    hints = [excerpt(diagnostic.message_hint, 2 * EXCERPT_LENGTH)] if diagnostic.message_hint else []
    return f"{'; '.join(part.rstrip('.') for part in (*quoted, *hints))} (SQLSTATE {error.sqlstate})"


def _frame(diagnostic: pg.Diagnostic) -> str | None:
    """Return the innermost function, and the query of it that is no statement of the file; None: there is none."""
    frames = [line for line in (diagnostic.context or "").splitlines() if _FUNCTION.match(line)]
    function = excerpt(frames[0]) if frames and _BLOCK not in frames[0] else None
    if not diagnostic.internal_query:
        return function
    position = int(diagnostic.internal_position or 1) - 1
    query = f"the query {excerpt(diagnostic.internal_query[max(0, position - EXCERPT_LENGTH // 4) :])}"
    return f"{query} of {function}" if function else query


def _translate(error: psycopg.Error, place: str, remedy: str) -> DatabaseError:
    if isinstance(error, _LOST) or (isinstance(error, psycopg.OperationalError) and error.sqlstate is None):
        return UnreachableError(
            f"{place}: the connection broke: {error_summary(error)}. Uncommitted work was rolled back. Run again"
        )
    if isinstance(error, pg.ReadOnlySqlTransaction):
        return UnsuitableServerError(f"{place}: {error_summary(error)}. Connect to the primary, read-write")
    if isinstance(error, psycopg.IntegrityError) and remedy == _REMEDY:
        remedy = _ROWS_REMEDY
    specific = next((text for kind, text in _REMEDIES.items() if isinstance(error, kind)), remedy)
    return StatementFailedError(f"{place}: {error_summary(error)}. {specific}")
