"""Places inside the body of a DO or of a function, and the commands of a DO that end its transaction."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pglast
from pglast import ast

_OPENING_QUOTE = re.compile(r"\$[^$]*\$|'")
_INDENT = re.compile(r"[ \t]*")
_REFUSED_COMMAND = re.compile(
    r"(SAVEPOINT|RELEASE|START\s+TRANSACTION|BEGIN|END|ABORT|PREPARE\s+TRANSACTION)\b", re.IGNORECASE
)


def body_start(sql: str) -> int | None:
    """Return the offset of the first character of the body of a DO or CREATE FUNCTION; None: it has no quoted body."""
    node: Any = pglast.parse_sql(sql)[0].stmt
    options = node.args if isinstance(node, ast.DoStmt) else getattr(node, "options", None)
    for option in options or ():
        if option.defname == "as":
            opening = _OPENING_QUOTE.search(sql, option.location)
            return opening.end() if opening else None
    return None


def offset_of_line(text: str, start: int, line: int) -> int:
    """Return the offset of the first word of a line of a body; line 1 begins at `start`."""
    for _ in range(line - 1):
        following = text.find("\n", start) + 1
        if not following:
            break
        start = following
    indent = _INDENT.match(text, start)
    return indent.end() if indent else start


def transaction_commands(sql: str) -> list[tuple[int, str]]:
    """Return the commands of a DO that end or split a transaction, each with its line in the body.

    Finds none in a block that is not PL/pgSQL or that the parser rejects: PostgreSQL reports the error when it runs.
    """
    with contextlib.suppress(pglast.Error):
        if _is_plpgsql(pglast.parse_sql(sql)[0].stmt):
            return list(_commands(pglast.parse_plpgsql(sql)))
    return []


def _is_plpgsql(block: Any) -> bool:
    return all(option.arg.sval.lower() == "plpgsql" for option in block.args if option.defname == "language")


def _commands(node: Any) -> Iterator[tuple[int, str]]:
    if isinstance(node, list):
        for each in node:
            yield from _commands(each)
    if not isinstance(node, dict):
        return
    for kind, value in node.items():
        if kind in {"PLpgSQL_stmt_commit", "PLpgSQL_stmt_rollback"}:
            yield value.get("lineno", 1), kind.rpartition("_")[2].upper()
        elif kind == "PLpgSQL_stmt_execsql":
            query = value["sqlstmt"]["PLpgSQL_expr"]["query"]
            if command := _REFUSED_COMMAND.match(query):
                yield value.get("lineno", 1), " ".join(command[1].upper().split())
        else:
            yield from _commands(value)
