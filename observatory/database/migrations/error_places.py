"""Finds the place in a migration file where PostgreSQL reports an error.

PostgreSQL gives a position in the statement, or a line in the body of a PL/pgSQL block or function. The body is in the
file where the statement is a DO, or where the file itself creates the function.
"""

from __future__ import annotations

import re
from typing import Any

import pglast
import psycopg

from observatory.database.migrations.procedural_blocks import body_start, offset_of_line
from observatory.database.migrations.statements import Script, Statement

_FRAME = re.compile(r"^PL/pgSQL function (?P<name>.+) line (?P<line>\d+) at ", re.MULTILINE)
_BLOCK = "inline_code_block"  # the name of a DO's body in PostgreSQL's messages
_CREATES_FUNCTION = re.compile(r"CREATE\s+(OR\s+REPLACE\s+)?(FUNCTION|PROCEDURE)\b", re.IGNORECASE)
_NAME = r'("(?:[^"]|"")*"|[^".(]+)'
_QUALIFIED_NAME = re.compile(rf"(?:{_NAME}\.)?{_NAME}(?=\()")


def offset_of_error(script: Script, number: int, error: psycopg.Error) -> int:
    """Return the offset in the file of an error of a statement; the statement's own where there is no other.

    Args:
        script: the file.
        number: of the statement that failed.
        error: PostgreSQL's.
    """
    statement = script.statements[number]
    if error.diag.statement_position:
        return statement.offset + int(error.diag.statement_position) - 1
    for frame in _FRAME.finditer(error.diag.context or ""):  # the innermost is first
        source = statement if frame["name"] == _BLOCK else _function(script, number, frame["name"])
        body = body_start(source.sql) if source else None
        if source and body is not None:
            return offset_of_line(script.migration.sql, source.offset + body, int(frame["line"]))
    return statement.offset


def _function(script: Script, number: int, name: str) -> Statement | None:
    """Return the statement that created a function; None: it is not in the file, or overloaded or replaced there."""
    called = _QUALIFIED_NAME.match(name)
    bare = called[2] if called else name
    unquoted = bare[1:-1].replace('""', '"') if bare.startswith('"') else bare
    before = (each for each in script.statements[: number + 1] if _CREATES_FUNCTION.match(each.sql))
    created = [each for each in before if _created_name(each) == unquoted]
    return created[0] if len(created) == 1 else None


def _created_name(statement: Statement) -> str:
    node: Any = pglast.parse_sql(statement.sql)[0].stmt
    return str(node.funcname[-1].sval)
