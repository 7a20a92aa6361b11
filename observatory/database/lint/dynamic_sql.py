"""The text that EXECUTE runs, where it follows from the text of the block."""

from __future__ import annotations

import re
from typing import Any

import pglast
from pglast import ast
from pglast.enums import A_Expr_Kind

# Stands for a name or value that only the running block has. No migration declares it.
UNKNOWN_NAME = "name_at_run_time"
_FORMAT = re.compile(r"%(?:(?P<position>\d+)\$)?(?P<flags>-?\d*)(?P<kind>[sIL%])")


def text_of_expression(expression: str) -> str | None:
    """Return the text of an expression in SQL.

    A name that is inserted with %I, `quote_ident` or a cast to regclass counts as an unknown one, a value that is
    inserted with %L or `quote_literal` as any value. Returns None where other parts are unknown.
    """
    try:
        statement = pglast.parse_sql(f"SELECT {expression}")[0].stmt
    except pglast.Error:
        return None
    targets = statement.targetList if isinstance(statement, ast.SelectStmt) else ()
    return _text(targets[0].val) if targets and len(targets) == 1 else None


def _text(node: Any) -> str | None:
    match node:
        case ast.A_Const(val=ast.String(sval=text)):
            return str(text)
        case ast.A_Const(val=ast.Integer(ival=number)):
            return str(number)
        case ast.A_Expr(kind=A_Expr_Kind.AEXPR_OP) if node.name[-1].sval == "||":
            left, right = _text(node.lexpr), _text(node.rexpr)
            return None if left is None or right is None else left + right
        case ast.TypeCast(arg=arg, typeName=kind):
            text = _text(arg)
            return UNKNOWN_NAME if text is None and kind.names[-1].sval == "regclass" else text
        case ast.FuncCall():
            return _call(node)
    return None


def _call(node: ast.FuncCall) -> str | None:
    name = str(node.funcname[-1].sval)
    arguments: tuple[Any, ...] = tuple(node.args or ())
    if name == "quote_ident" and len(arguments) == 1:
        return _identifier(_text(arguments[0]))
    if name in {"quote_literal", "quote_nullable"} and len(arguments) == 1:
        return _literal(_text(arguments[0]))
    if name == "concat":
        texts = [_text(argument) for argument in arguments]
        return None if None in texts else "".join(str(text) for text in texts)
    return _formatted(arguments) if name == "format" and not node.func_variadic else None


def _formatted(arguments: Any) -> str | None:
    """Return what `format` returns."""
    pattern = _text(arguments[0]) if arguments else None
    if pattern is None:
        return None
    used, parts, end = 0, [], 0
    for found in _FORMAT.finditer(pattern):
        parts.append(pattern[end : found.start()])
        end = found.end()
        if found["kind"] == "%":
            parts.append("%")
            continue
        used = int(found["position"]) if found["position"] else used + 1
        value = _text(arguments[used]) if used < len(arguments) else None
        shown = {"I": _identifier(value), "L": _literal(value), "s": value}[found["kind"]]
        if shown is None or found["flags"]:
            return None
        parts.append(shown)
    return "".join(parts) + pattern[end:]


def _identifier(text: str | None) -> str:
    return UNKNOWN_NAME if text is None else '"' + text.replace('"', '""') + '"'


def _literal(text: str | None) -> str:
    return "'" + (text or "").replace("'", "''") + "'"
