"""Statements that PostgreSQL refuses inside a transaction: how each runs, and what an interruption may have left of it.

Owns what is particular to a kind of statement. The order of things and the ledger are
`observatory.database.migrations.applying`.
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

# Only statements that start so are of a particular kind; the others need no syntax tree.
_SUSPECT = re.compile(r"(CREATE|DROP|REINDEX|ALTER\s+EXTENSION)\b", re.IGNORECASE)
_SESSION_SETTING = re.compile(r"(SET|RESET)\s", re.IGNORECASE)

_INDEX = """
    SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE c.relname = %s AND i.indrelid = to_regclass(%s)
"""


class Particulars(NamedTuple):
    """What is particular to a statement that runs outside a transaction.

    Attributes:
        fresh_session: it must be the first statement of its session: TimescaleDB refuses to be updated in one that has
            its library loaded already.
        patient: its waits queue nobody behind it, so no lock timeout ends them; they wait for transactions, not for
            locks that others want.
        builds_index: (relation, index) that it builds concurrently or chunk by chunk; None: it builds none.
        fills_aggregate: the continuous aggregate that it makes and fills; None: it makes none.
        drops: it drops something.
    """

    fresh_session: bool = False
    patient: bool = False
    builds_index: tuple[str, str] | None = None
    fills_aggregate: str | None = None
    drops: bool = False


def particulars(statement: Statement) -> Particulars:
    """Look at a statement's syntax tree."""
    if not _SUSPECT.match(statement.sql):
        return Particulars()
    node: Any = pglast.parse_sql(statement.sql)[0].stmt
    match node:
        case ast.AlterExtensionStmt():
            found = Particulars(fresh_session=True)
        case ast.IndexStmt(idxname=str() as index) if builds_in_steps(node):
            found = Particulars(patient=bool(node.concurrent), builds_index=(_qualified(node.relation), index))
        case ast.DropStmt():
            found = Particulars(patient=bool(node.concurrent), drops=True)
        case ast.ReindexStmt():
            found = Particulars(patient=any(option.defname == "concurrently" for option in node.params or ()))
        case ast.CreateTableAsStmt(into=ast.IntoClause() as into) if not into.skipData:
            found = Particulars(fills_aggregate=_qualified(into.rel))
        case _:
            found = Particulars()
    return found


def sets_session(statement: Statement) -> bool:
    """Whether it sets something for the statements after it, which a resumed file needs again."""
    return bool(_SESSION_SETTING.match(statement.sql))


@contextlib.contextmanager
def patience(connection: psycopg.Connection, kind: Particulars) -> Iterator[None]:
    """Lift the lock timeout inside the block, for a statement that may wait as long as it takes."""
    if not kind.patient:
        yield
        return
    [before] = connection.execute("SELECT current_setting('lock_timeout')").fetchone() or ("0",)
    connection.execute("SET lock_timeout = 0")
    yield
    connection.execute("SELECT set_config('lock_timeout', %s, false)", [before])


def settle(connection: psycopg.Connection, kind: Particulars, *, same: bool) -> bool:
    """Deal with what an interrupted statement may have left; return whether it is done and need not run again.

    An index that was not finished is dropped: `IF NOT EXISTS` would keep it, unusable, for ever. A continuous aggregate
    that exists is filled.

    Args:
        connection: to the database.
        kind: of the statement.
        same: the file was not changed since: it is the statement that was interrupted.
    """
    if kind.builds_index:
        return _settle_index(connection, *kind.builds_index) and same
    if kind.fills_aggregate and same and _exists(connection, kind.fills_aggregate):
        connection.execute("CALL refresh_continuous_aggregate(%s::regclass, NULL, NULL)", [kind.fills_aggregate])
        return True
    return False


def _settle_index(connection: psycopg.Connection, relation: str, index: str) -> bool:
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
