"""Checks that products and sums of integers fit the type in which PostgreSQL computes them.

PostgreSQL multiplies two `integer` as `integer`: a square overflows from 46,341 on, and the aggregate, the view and
every refresh fail with it. Bits are counted without the sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pglast import ast
from pglast.enums import A_Expr_Kind

from observatory.database.lint.declared_schema import DeclaredSchema, function_name, key_of, type_name, walk

_WIDTHS = {"int2": 15, "int4": 31, "int8": 63, "serial": 31, "bigserial": 63}
_COUNTS = {"count", "sum", "row_number", "rank"}
_SAME_AS_ARGUMENT = {"abs", "min", "max", "first", "last"}
_LENGTHS = {"length", "char_length", "octet_length", "cardinality", "array_length", "jsonb_array_length"}
AGGREGATES = {
    *("sum", "avg", "min", "max", "count", "stddev", "stddev_pop", "stddev_samp", "variance", "var_pop", "var_samp"),
    *("corr", "covar_pop", "covar_samp", "regr_slope", "first", "last", "histogram", "array_agg", "percentile_cont"),
}


class Width(NamedTuple):
    """The width of an integer expression: bits of its type, bits of its values, and whether it is a literal."""

    type_bits: int
    value_bits: int
    constant: bool = False


def overflows(statement: ast.Node, nodes: Iterable[ast.Node], schema: DeclaredSchema) -> Iterator[tuple[int, str]]:
    """Yield the places where a view or an aggregate may overflow: the offset in the statement, and a message."""
    is_view = isinstance(statement, ast.ViewStmt | ast.CreateTableAsStmt)
    roots = [statement] if is_view else [node for node in nodes if _is_aggregate(node)]
    columns = _columns(statement, schema) if roots else {}
    seen = set()
    for node in (node for root in roots for node in walk(root)):
        if id(node) not in seen and (message := _problem(node, columns)):
            seen.add(id(node))
            yield node.location, message


def _is_aggregate(node: ast.Node) -> bool:
    return isinstance(node, ast.FuncCall) and function_name(node) in AGGREGATES


def _problem(node: ast.Node, columns: Mapping[str, str]) -> str | None:
    match node:
        case ast.A_Expr() if _operator(node) == "*":
            return _product_problem(_width(node.lexpr, columns), _width(node.rexpr, columns))
        case ast.TypeCast(arg=ast.FuncCall() as call) if function_name(call) in {"sum", "count"}:
            if _WIDTHS.get(type_name(node.typeName), 63) < _WIDTHS["int8"]:
                return (
                    f"{function_name(call)}() is cast to {type_name(node.typeName)}, which overflows. Remove the cast"
                )
    return None


def _product_problem(left: Width | None, right: Width | None) -> str | None:
    if left is None or right is None or (left.constant and right.constant):
        return None
    type_bits = max(left.type_bits, right.type_bits)
    # The values of a bigint are unknown, so its product with a literal counts as safe.
    if type_bits == _WIDTHS["int8"] and (left.constant or right.constant):
        return None
    if left.value_bits + right.value_bits <= type_bits:
        return None
    name = {15: "smallint", 31: "integer", 63: "bigint"}[type_bits]
    return f"this product is computed as {name}, which overflows. Cast one side to numeric first"


def _width(node: Any, columns: Mapping[str, str]) -> Width | None:
    """Return the width of an expression; None when it is not an integer, or its type is unknown."""
    width = None
    match node:
        case ast.A_Const(val=ast.Integer(ival=value)):
            width = Width(_WIDTHS["int4"], int(value or 0).bit_length(), constant=True)
        case ast.ColumnRef():
            name = getattr(node.fields[-1], "sval", "")
            width = _of_type(columns.get(str(name), ""))
        case ast.TypeCast():
            width = _cast(_of_type(type_name(node.typeName)), _width(node.arg, columns))
        case ast.A_Expr() if _operator(node) in {"*", "+", "-", "/", "%"}:
            width = _operation(_operator(node), _width(node.lexpr, columns), _width(node.rexpr, columns))
        case ast.CoalesceExpr(args=arguments) | ast.MinMaxExpr(args=arguments):
            width = _widest([_width(argument, columns) for argument in arguments])
        case ast.FuncCall():
            width = _call(node, columns)
    return width


def _cast(to: Width | None, of: Width | None) -> Width | None:
    return Width(to.type_bits, min(to.value_bits, of.value_bits)) if to and of else to


def _operation(operator: str, left: Width | None, right: Width | None) -> Width | None:
    if left is None or right is None:
        return None
    type_bits = max(left.type_bits, right.type_bits)
    values = {"*": left.value_bits + right.value_bits, "/": left.value_bits, "%": right.value_bits}
    value_bits = values.get(operator, max(left.value_bits, right.value_bits) + 1)
    return Width(type_bits, min(type_bits, value_bits), left.constant and right.constant)


def _call(node: ast.FuncCall, columns: Mapping[str, str]) -> Width | None:
    name = function_name(node)
    argument = _width(node.args[0], columns) if node.args else None
    if name in _LENGTHS:
        return _of_type("int4")
    if name in _SAME_AS_ARGUMENT:
        return argument
    if name == "sum" and (argument is None or argument.type_bits == _WIDTHS["int8"]):
        return None  # numeric
    return _of_type("int8") if name in _COUNTS else None


def _widest(widths: list[Width | None]) -> Width | None:
    known = [width for width in widths if width]
    if not known or len(known) < len(widths):
        return None
    return Width(max(width.type_bits for width in known), max(width.value_bits for width in known))


def _of_type(name: str) -> Width | None:
    bits = _WIDTHS.get(name)
    return Width(bits, bits) if bits else None


def _operator(node: ast.A_Expr) -> str:
    return str(node.name[-1].sval) if node.kind == A_Expr_Kind.AEXPR_OP and node.lexpr is not None else ""


def _columns(statement: ast.Node, schema: DeclaredSchema) -> dict[str, str]:
    """Return the column types of the tables that the statement names; the narrower one where a name occurs twice."""
    types: dict[str, str] = {}
    for node in walk(statement):
        if isinstance(node, ast.RangeVar):
            for name, kind in schema.columns.get(key_of(node), {}).items():
                types[name] = min(types.get(name, kind), kind, key=lambda kind: _WIDTHS.get(kind, 0) or 64)
    return types
