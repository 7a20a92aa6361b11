"""The tables and hypertables that the migrations declare, derived from their SQL alone.

Holds only what the rules need. Objects created inside functions and DO blocks are unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from pglast import ast
from pglast.enums import AlterTableType, ConstrType, ObjectType

Key = tuple[str, str]  # schema and name

DEFAULT_SCHEMA = "public"
_SERIAL = {"smallserial", "serial2", "serial", "serial4", "bigserial", "serial8"}
_VOLATILE = {
    *("random", "random_normal", "setseed", "gen_random_uuid", "uuidv4", "uuidv7", "uuid_generate_v1"),
    *("uuid_generate_v1mc", "uuid_generate_v4", "clock_timestamp", "timeofday", "nextval", "gen_random_bytes"),
}


class DeclaredSchema:
    """Tables, hypertables and volatile functions that the statements so far declare.

    Attributes:
        columns: the type of each column of each table, by PostgreSQL's internal name (`int4`).
        hypertables: the tables that are hypertables so far.
        future_hypertables: the tables that some file of the set turns into a hypertable.
        created_by: version of the migration that created a table.
        volatile: functions that return another value at each call.
    """

    def __init__(self, future_hypertables: frozenset[Key] = frozenset()) -> None:
        self.columns: dict[Key, dict[str, str]] = {}
        self.hypertables: set[Key] = set()
        self.future_hypertables = future_hypertables
        self.created_by: dict[Key, int] = {}
        self.volatile = set(_VOLATILE)

    def apply(self, node: ast.Node, version: int) -> None:
        """Apply the effects of a statement."""
        match node:
            case ast.CreateStmt():
                self._create_table(node, version)
            case ast.AlterTableStmt():
                self._alter_table(node)
            case ast.CreateTableAsStmt():
                self.created_by[key_of(node.into.rel)] = version
            case ast.CreateFunctionStmt():
                self._create_function(node)
            case ast.DropStmt(removeType=ObjectType.OBJECT_TABLE):
                self._drop_tables(node)
            case ast.SelectStmt():
                self.hypertables.update(created_hypertables(node))

    def _create_table(self, node: ast.CreateStmt, version: int) -> None:
        key = key_of(node.relation)
        self.created_by[key] = version
        definitions = [element for element in node.tableElts or () if isinstance(element, ast.ColumnDef)]
        self.columns[key] = {str(column.colname): type_name(column.typeName) for column in definitions}

    def _alter_table(self, node: ast.AlterTableStmt) -> None:
        columns = self.columns.setdefault(key_of(node.relation), {})
        for command in node.cmds or ():
            if command.subtype == AlterTableType.AT_AddColumn:
                columns[command.def_.colname] = type_name(command.def_.typeName)
            elif command.subtype == AlterTableType.AT_AlterColumnType:
                columns[command.name] = type_name(command.def_.typeName)
            elif command.subtype == AlterTableType.AT_DropColumn:
                columns.pop(command.name, None)

    def _create_function(self, node: ast.CreateFunctionStmt) -> None:
        volatility = [option.arg.sval for option in node.options or () if option.defname == "volatility"]
        name = str(node.funcname[-1].sval)
        if volatility and volatility[-1] != "volatile":
            self.volatile.discard(name)
        else:
            self.volatile.add(name)

    def _drop_tables(self, node: ast.DropStmt) -> None:
        for names in node.objects:
            key = _key([part.sval for part in names])
            self.columns.pop(key, None)
            self.created_by.pop(key, None)
            self.hypertables.discard(key)


def walk(node: Any) -> Iterator[ast.Node]:
    """Yield a node and every node below it, in the order of the text."""
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if isinstance(each, tuple | list):
            waiting.extend(reversed(each))
        elif isinstance(each, ast.Node):
            yield each
            values = (getattr(each, name, None) for name in _children(type(each)))  # type: ignore[arg-type]
            waiting.extend(value for value in values if value is not None)


@cache
def _children(kind: type) -> tuple[str, ...]:
    """Return the attributes of a class of nodes that hold nodes, last first."""
    slots: dict[str, Any] = kind.__slots__  # type: ignore[attr-defined]
    types = {name: str(slot.c_type) for name, slot in slots.items()}
    return tuple(
        name
        for name, c_type in reversed(types.items())
        if c_type == "ValUnion" or (c_type[-1:] == "*" and c_type != "char*")
    )


def key_of(relation: ast.RangeVar) -> Key:
    """Return schema and name of a relation."""
    return (relation.schemaname or DEFAULT_SCHEMA, str(relation.relname))


def function_name(node: ast.FuncCall) -> str:
    """Return the name of the called function without its schema."""
    return str(node.funcname[-1].sval)


def type_name(node: ast.TypeName) -> str:
    """Return PostgreSQL's internal name of a type: `int4`, `timestamptz`; arrays end in `[]`."""
    return str(node.names[-1].sval) + ("[]" if node.arrayBounds else "")


def is_serial(definition: ast.ColumnDef) -> bool:
    """Return whether a column takes its values from a sequence."""
    kinds = {constraint.contype for constraint in definition.constraints or ()}
    return type_name(definition.typeName) in _SERIAL or ConstrType.CONSTR_IDENTITY in kinds


def text_of(node: Any) -> str | None:
    """Return the text of a literal, also of one with a cast; None for anything else."""
    while isinstance(node, ast.TypeCast | ast.NamedArgExpr):
        node = node.arg
    return str(node.val.sval) if isinstance(node, ast.A_Const) and isinstance(node.val, ast.String) else None


def created_hypertables(node: ast.Node) -> Iterator[Key]:
    """Yield the tables that a statement turns into hypertables."""
    for call in walk(node):
        if isinstance(call, ast.FuncCall) and function_name(call) == "create_hypertable" and call.args:
            name = text_of(call.args[0])
            if name:
                yield _key(name.split("."))


def _key(names: list[str]) -> Key:
    return (names[-2] if len(names) > 1 else DEFAULT_SCHEMA, names[-1])
