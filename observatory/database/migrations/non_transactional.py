"""Statements that PostgreSQL refuses inside a transaction: how each one runs, and how an interrupted one is finished.

Owns the traits of each kind of statement. `observatory.database.migrations.applying` owns the order and the ledger.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pglast
import psycopg
from pglast import ast
from psycopg import sql

from observatory.database.migrations.statements import Statement, builds_in_steps

# Only statements that start like this have special traits; the others need no syntax tree.
_CANDIDATE = re.compile(r"(CREATE|DROP|REINDEX|ALTER\s+EXTENSION)\b", re.IGNORECASE)
_SESSION_SETTING = re.compile(r"(SET|RESET)\s", re.IGNORECASE)

_INDEX = """
    SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE c.relname = %s AND i.indrelid = to_regclass(%s)
"""


class StatementTraits(NamedTuple):
    """How a statement behaves outside a transaction.

    Attributes:
        fresh_session: it must be the first statement of its session, because TimescaleDB rejects an update in a
            session that has loaded its library.
        has_no_lock_timeout: it waits for old transactions while no session queues behind it; or each attempt repeats
            all of its work: an index by chunk waits once at each chunk, as in psql, and writers of that chunk queue.
        builds_index: (relation, index) that it builds concurrently or chunk by chunk; None: it builds none.
        fills_aggregate: the continuous aggregate that it creates and fills; None: it creates none.
        drops: it drops something.
    """

    fresh_session: bool = False
    has_no_lock_timeout: bool = False
    builds_index: tuple[str, str] | None = None
    fills_aggregate: str | None = None
    drops: bool = False


def traits_of(statement: Statement) -> StatementTraits:
    """Return the traits of a statement, from its syntax tree."""
    if not _CANDIDATE.match(statement.sql):
        return StatementTraits()
    node: Any = pglast.parse_sql(statement.sql)[0].stmt
    match node:
        case ast.AlterExtensionStmt():
            found = StatementTraits(fresh_session=True)
        case ast.IndexStmt(idxname=str() as index) if builds_in_steps(node):
            relation = _qualified(node.relation)
            found = StatementTraits(has_no_lock_timeout=True, builds_index=(relation, index))
        case ast.DropStmt():
            found = StatementTraits(has_no_lock_timeout=bool(node.concurrent), drops=True)
        case ast.ReindexStmt():
            concurrently = any(option.defname == "concurrently" for option in node.params or ())
            found = StatementTraits(has_no_lock_timeout=concurrently)
        case ast.CreateTableAsStmt(into=ast.IntoClause() as into) if not into.skipData:
            found = StatementTraits(fills_aggregate=_qualified(into.rel))
        case _:
            found = StatementTraits()
    return found


def sets_session_parameter(statement: Statement) -> bool:
    """Return whether it sets a session parameter, which a resumed file must set again."""
    return bool(_SESSION_SETTING.match(statement.sql))


@contextlib.contextmanager
def without_lock_timeout(connection: psycopg.Connection, traits: StatementTraits) -> Iterator[None]:
    """Lift the lock timeout inside the block for a statement that runs without one."""
    if not traits.has_no_lock_timeout:
        yield
        return
    [before] = connection.execute("SELECT current_setting('lock_timeout')").fetchone() or ("0",)
    connection.execute("SET lock_timeout = 0")
    yield
    connection.execute("SELECT set_config('lock_timeout', %s, false)", [before])


def finish_interrupted(connection: psycopg.Connection, traits: StatementTraits, *, same_statement: bool) -> bool:
    """Finish or undo an interrupted statement; return whether it is done and need not run again.

    Drops an unfinished index, because `IF NOT EXISTS` would keep it although it is invalid. Fills a continuous
    aggregate that exists.

    Args:
        connection: to the database.
        traits: of the statement.
        same_statement: the file still has the statement that was interrupted.
    """
    if traits.builds_index:
        return _drop_invalid_index(connection, *traits.builds_index) and same_statement
    if traits.fills_aggregate and same_statement and _exists(connection, traits.fills_aggregate):
        connection.execute("CALL refresh_continuous_aggregate(%s::regclass, NULL, NULL)", [traits.fills_aggregate])
        return True
    return False


def _drop_invalid_index(connection: psycopg.Connection, relation: str, index: str) -> bool:
    """Drop the index where it is invalid; return whether there is a valid one."""
    row = connection.execute(_INDEX, [index, relation]).fetchone()
    if row == (False,):
        query = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass(%s)"
        [schema] = connection.execute(query, [relation]).fetchone() or [""]
        qualified = sql.SQL(schema) + sql.SQL(".") + sql.Identifier(index)
        connection.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(qualified))
    return row == (True,)


def _exists(connection: psycopg.Connection, relation: str) -> bool:
    row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", [relation]).fetchone()
    return bool(row and row[0])


def _qualified(relation: Any) -> str:
    return sql.Identifier(*filter(None, (relation.schemaname, relation.relname))).as_string()
