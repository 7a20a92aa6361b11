"""Refuses files of other tools whose marks mean nothing here: a section for the way back would run too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import pglast
from pglast import parser


class _Tool(NamedTuple):
    """A tool, its marks in comments, and how to convert a file."""

    name: str
    marks: re.Pattern[str]
    convert: str


_DOWN = (
    "Keep the statements of the way forward only, without the marks: a migration here has no way back, see "
    "docs/migrations.md"
)
_OUTSIDE = "write '-- transaction: false' as the first line where the file says that it runs outside a transaction"


def _tool(name: str, marks: str, convert: str = _DOWN) -> _Tool:
    return _Tool(name, re.compile(marks, re.IGNORECASE), convert)


_TOOLS = (
    _tool("dbmate", r"--\s*migrate:(up|down)\b", f"{_DOWN}; {_OUTSIDE}"),
    _tool("goose", r"--\s*\+goose\b", f"{_DOWN}; {_OUTSIDE}"),
    _tool("sql-migrate", r"--\s*\+migrate\b", f"{_DOWN}; {_OUTSIDE}"),
    _tool("micrate", r"--\s*\+micrate\b"),
    _tool("rambler", r"--\s*rambler\s+(up|down)\b"),
    _tool(
        "Liquibase",
        r"(--|/\*)\s*(liquibase\s+formatted\s+sql|changeset\s+[^\s:]+:\S|preconditions\s|precondition-)|--rollback\b"
        r"|--\s+rollback\s+(drop|alter|delete|update|insert|create|truncate|revoke|grant|not required|empty)\b",
        "Write each changeset into a file of its own, without the comments of Liquibase and without --rollback",
    ),
    _tool("MyBatis Migrations", r"--\s*//\s*@undo\b"),
    _tool("node-pg-migrate", r"--\s*(up|down)\s+migration\s*$"),
    _tool("tern", r"----\s*create above\s*/\s*drop below\s*----"),
    _tool("Play", r"---\s*!(ups|downs)\b"),
    _tool(
        "sqitch",
        r"--\s*(deploy|revert|verify)\s+\S+:\S+\s+(to|from|on)\s+\S+",
        "Copy only the file of the folder deploy/, without BEGIN and COMMIT; leave out revert/ and verify/",
    ),
    _tool("yoyo", r"--\s*(depends|transactional)\s*:\s", f"Order the files by their numbers; {_OUTSIDE}"),
    _tool("Atlas", r"--\s*atlas:(txmode|checkpoint|import|delimiter)\b", f"Remove the line; {_OUTSIDE}"),
    _tool("a tool with down sections", r"--\s*@?(down|undo|revert)\b\s*:?\s*$|--\s*={2,}\s*down\s*={2,}\s*$"),
)
_COMMENTS = {"SQL_COMMENT", "C_COMMENT"}


def foreign_marks(sql: str) -> Iterator[tuple[int, str]]:
    """Yield the first mark of each tool in the comments of a file: the offset, and the message."""
    for tool in _TOOLS:
        found = next(((offset, match) for offset, line in _comments(sql) if (match := tool.marks.match(line))), None)
        if found:
            mark = " ".join(found[1].group().split())
            yield found[0], f"{mark!r} is a mark of {tool.name}, which means nothing here. {tool.convert}"


def _comments(sql: str) -> Iterator[tuple[int, str]]:
    """Yield each line that starts in a comment, with its offset; texts and names hold no comments."""
    try:
        tokens = [token for token in parser.scan(sql) if token.name in _COMMENTS] if "--" in sql or "/*" in sql else []
    except pglast.Error:
        return
    for token in tokens:
        yield token.start, sql[token.start : token.end + 1].rstrip()
