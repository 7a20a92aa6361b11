"""The condition of `--where`: one expression that only reads the row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, LiteralString

import pglast
import psycopg
from pglast import ast
from pglast.visitors import Visitor
from psycopg import errors as pg
from psycopg import sql

from observatory.backups.flashback.errors import ConditionError

# Both must parse: a text that closes the first one's bracket does not close the other's.
_EMBEDDINGS = ("SELECT WHERE ({}\n)", "SELECT ARRAY[{}\n]")
_SYSTEM_COLUMNS = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})  # differ in a restored copy
_REMEDY = "Write one expression over the table's columns, as after WHERE: --where \"user_id = 'u1'\"."

# A function that is found by its name alone may be any of that name.
_VOLATILE: LiteralString = """
    SELECT DISTINCT proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE p.provolatile = 'v' AND EXISTS (
        SELECT FROM unnest(%(schemas)s::text[], %(functions)s::text[]) AS used (nspname, proname)
        WHERE used.proname = p.proname AND coalesce(used.nspname, n.nspname) = n.nspname)
    UNION
    SELECT oprname FROM pg_operator o JOIN pg_proc p ON p.oid = o.oprcode
    WHERE p.provolatile = 'v' AND oprname = ANY (%(operators)s)
    ORDER BY 1
"""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A condition that rows are chosen by.

    Attributes:
        text: the expression.
        functions: the names that it calls, each with its schema, None where it has none.
        operators: those that it uses.
    """

    text: str
    functions: frozenset[tuple[str | None, str]]
    operators: frozenset[str]

    @property
    def query(self) -> sql.Composable:
        """The expression as a part of a query; a comment at its end ends with the line."""
        return sql.SQL("({}\n)").format(sql.SQL(self.text))

    def check_reads_only(self, connection: psycopg.Connection) -> None:
        """Refuse functions and operators that may change something, or have another result for each row.

        Raises:
            ConditionError: the condition uses one.
        """
        used = sorted(self.functions, key=str)
        row = {
            "schemas": [schema for schema, _ in used],
            "functions": [name for _, name in used],
            "operators": sorted(self.operators),
        }
        if found := [name for (name,) in connection.execute(_VOLATILE, row).fetchall()]:
            raise ConditionError(
                f"the condition uses {', '.join(found)}, which may change something or differs from call to call",
                remedy="Use functions that PostgreSQL calls immutable or stable.",
            )

    def check_fits(self, connection: psycopg.Connection, table: sql.Identifier, *, where: str) -> None:
        """Refuse what PostgreSQL cannot evaluate over the rows of a table; no row is read.

        Args:
            connection: of the database that has the table.
            table: whose rows the condition chooses.
            where: the state of the table, for messages.

        Raises:
            ConditionError: it names a column that the table lacks, for example, or is not true or false.
        """
        try:
            connection.execute(sql.SQL("EXPLAIN SELECT FROM {} WHERE {}").format(table, self.query))
        except (pg.ProgrammingError, pg.DataError) as error:
            raise ConditionError(
                f"the condition {self.text!r} does not fit the table {where}: {error.diag.message_primary}",
                remedy=_REMEDY,
            ) from None


def read_condition(text: str) -> Condition:
    """Return the condition of a text.

    Raises:
        ConditionError: it is no expression, or has a subquery, a parameter or a system column.
    """
    expression = _parse(text)
    found = _Uses()
    found(expression)
    return Condition(text=text, functions=frozenset(found.functions), operators=frozenset(found.operators))


def _parse(text: str) -> ast.Node:
    try:
        trees = [pglast.parse_sql(each.format(text)) for each in _EMBEDDINGS]
    except pglast.Error as error:
        reason = str(error.args[0]).splitlines()[0]
        raise ConditionError(f"the condition {text!r} is no expression: {reason}", remedy=_REMEDY) from None
    statement: Any = trees[0][0].stmt
    parts = [name for name in statement if getattr(statement, name)]
    if any(len(tree) != 1 for tree in trees) or set(parts) - {"limitOption", "op", "all"} != {"whereClause"}:
        raise ConditionError(f"the condition {text!r} is more than one expression", remedy=_REMEDY)
    return statement.whereClause


class _Uses(Visitor):
    """Collects what an expression calls, and refuses what reads more than the row."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: set[tuple[str | None, str]] = set()
        self.operators: set[str] = set()

    def visit_SubLink(self, _ancestors: Any, _node: ast.Node) -> None:  # noqa: N802 - named as the node
        raise ConditionError("the condition has a subquery, which reads other rows", remedy=_REMEDY)

    def visit_ParamRef(self, _ancestors: Any, node: Any) -> None:  # noqa: N802
        raise ConditionError(f"the condition has the parameter ${node.number}", remedy=_REMEDY)

    def visit_ColumnRef(self, _ancestors: Any, node: Any) -> None:  # noqa: N802
        last = node.fields[-1]
        if isinstance(last, ast.String) and last.sval in _SYSTEM_COLUMNS:
            raise ConditionError(
                f"the condition has the system column {last.sval}, which differs in a restored copy", remedy=_REMEDY
            )

    def visit_FuncCall(self, _ancestors: Any, node: Any) -> None:  # noqa: N802
        *schema, name = (part.sval for part in node.funcname)
        self.functions.add((schema[-1] if schema else None, name))

    def visit_A_Expr(self, _ancestors: Any, node: Any) -> None:  # noqa: N802
        self.operators.add(node.name[-1].sval)
