"""Finds statements that block, empty or endanger tables in use, and statements without an effect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pglast import ast
from pglast.enums import AlterTableType, BoolExprType, CmdType, MergeMatchKind, VariableSetKind

from observatory.database.lint.declared_objects import DeclaredObjects
from observatory.database.lint.declared_schema import Key, function_name, text_of, walk

Problems = Iterator[tuple[int, str]]


def blocking_rewrites(node: ast.Node) -> Problems:
    """Yield commands that lock out readers and writers for as long as they copy a table."""
    if isinstance(node, ast.VacuumStmt) and any(option.defname == "full" for option in node.options or ()):
        yield 0, "VACUUM FULL locks out readers and writers while it copies the table. Use VACUUM, or pg_repack"
    elif isinstance(node, ast.ClusterStmt):
        yield 0, "CLUSTER locks out readers and writers while it copies the table. Use pg_repack, or leave the order"


def removed_rows(node: ast.Node, nodes: Iterable[ast.Node], objects: DeclaredObjects, version: int) -> Problems:
    """Yield statements that remove all rows of a table that an earlier migration created, or whole chunks."""
    if isinstance(node, ast.TruncateStmt):
        for relation in node.relations or ():
            if objects.created(("relation", *objects.relation(relation))) < version:
                yield _at(relation), f"TRUNCATE removes every row of {relation.relname}. {_KEEP_ROWS}"
    for each in nodes:
        if what := _removes_all(each):
            if objects.created(("relation", *objects.relation(each.relation))) < version:
                yield _at(each.relation), f"{what} removes every row of {each.relation.relname}. {_KEEP_ROWS}"
        elif isinstance(each, ast.FuncCall) and function_name(each) == "drop_chunks":
            yield _at(each), f"drop_chunks removes rows for good. {_KEEP_ROWS}"


def _removes_all(node: Any) -> str:
    """Return the words for a DELETE or MERGE that keeps no row; empty for others."""
    if isinstance(node, ast.DeleteStmt):
        if node.whereClause is None:
            return "DELETE without WHERE"
        return "DELETE with a condition that is always true" if _is_always_true(node.whereClause) else ""
    if isinstance(node, ast.MergeStmt):
        deletes = [each for each in node.mergeWhenClauses if each.commandType == CmdType.CMD_DELETE]
        for each in deletes:
            if each.condition is not None and not _is_always_true(each.condition):
                continue
            if each.matchKind == MergeMatchKind.MERGE_WHEN_NOT_MATCHED_BY_SOURCE or _is_always_true(node.joinCondition):
                return "MERGE that deletes without a condition"
    return ""


def _is_always_true(condition: Any) -> bool:
    """Return whether a condition is true by its text alone: true, 1 = 1, a OR true, NOT false."""
    match condition:
        case ast.A_Const():
            return bool(isinstance(condition.val, ast.Boolean) and condition.val.boolval)
        case ast.TypeCast(arg=ast.A_Const(val=ast.String(sval=text))):
            return str(text).lower() in {"t", "true", "y", "yes", "on", "1"}
        case ast.A_Expr(lexpr=ast.A_Const() as left, rexpr=ast.A_Const() as right):
            return [each.sval for each in condition.name] == ["="] and left.val == right.val
        case ast.BoolExpr(boolop=BoolExprType.NOT_EXPR, args=[ast.A_Const(val=ast.Boolean() as value)]):
            return not value.boolval
        case ast.BoolExpr(boolop=BoolExprType.AND_EXPR | BoolExprType.OR_EXPR):
            combined = all if condition.boolop == BoolExprType.AND_EXPR else any
            return combined(_is_always_true(each) for each in condition.args)
    return False


_KEEP_ROWS = "Add a condition, or write the reason into '-- lint-ignore removes-rows: REASON'"


def fills_added_column(nodes: Iterable[ast.Node], objects: DeclaredObjects, altered: set[Key]) -> Problems:
    """Yield an UPDATE of a table to which the same transaction has added a column."""
    for each in nodes:
        if isinstance(each, ast.UpdateStmt) and objects.relation(each.relation) in altered:
            name, remedy = each.relation.relname, "Add the column with a default, or fill it in the next file, in parts"
            message = f"the lock of ADD COLUMN blocks readers and writers of {name} until this UPDATE has ended"
            yield _at(each.relation), f"{message}. {remedy}"


def tables_with_added_columns(node: ast.Node, objects: DeclaredObjects, version: int) -> Iterator[Key]:
    """Yield the tables of earlier migrations to which a statement adds a column."""
    if isinstance(node, ast.AlterTableStmt):
        key = objects.relation(node.relation)
        adds = any(command.subtype == AlterTableType.AT_AddColumn for command in node.cmds or ())
        if adds and objects.created(("relation", *key)) < version:
            yield key


def unsafe_definer(node: ast.Node) -> Problems:
    """Yield functions that run with their owner's privileges and find their objects by the caller's search path."""
    options: tuple[Any, ...] = ()
    if isinstance(node, ast.CreateFunctionStmt):
        options = tuple(node.options or ())
    elif isinstance(node, ast.AlterFunctionStmt):
        options = tuple(node.actions or ())
    definer = any(option.defname == "security" and option.arg.boolval for option in options)
    paths = [option.arg for option in options if option.defname == "set" and option.arg.name == "search_path"]
    if definer and not any(path.kind == VariableSetKind.VAR_SET_VALUE for path in paths):
        message = "SECURITY DEFINER without SET search_path runs objects of the caller with the owner's privileges"
        yield 0, f"{message}. Add SET search_path = pg_catalog, public"


def without_effect(node: ast.Node, *, transactional: bool) -> Problems:
    """Yield settings of a transaction in a file that has none."""
    if transactional:
        return
    if isinstance(node, ast.VariableSetStmt) and (node.is_local or node.name == "TRANSACTION"):
        what = "SET TRANSACTION" if node.name == "TRANSACTION" else f"SET LOCAL {node.name}"
        yield 0, f"{what} has no effect outside a transaction. Use SET, which ends with the file"
    elif isinstance(node, ast.ConstraintsSetStmt):
        yield 0, "SET CONSTRAINTS has no effect outside a transaction. Remove it"
    elif isinstance(node, ast.SelectStmt):
        for call in walk(node):
            if isinstance(call, ast.FuncCall) and function_name(call) == "set_config" and _is_local(call.args):
                yield _at(call), f"set_config({text_of(call.args[0])}, …, true) has no effect outside a transaction"


def _is_local(arguments: Any) -> bool:
    value = arguments[-1].arg if isinstance(arguments[-1], ast.TypeCast) else arguments[-1]
    return isinstance(value, ast.A_Const) and isinstance(value.val, ast.Boolean) and bool(value.val.boolval)


def _at(node: Any) -> int:
    return max(node.location or 0, 0)
