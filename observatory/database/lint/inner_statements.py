"""Statements that another statement runs: in DO blocks, in functions that it calls, in EXECUTE.

`pglast.parse_plpgsql` refuses variables of a type in a schema and gives lines only, so PostgreSQL's scanner splits the
block, and its parser reads each piece. What neither can read is reported as unseen and never passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pglast
from pglast import ast, parser

from observatory.database.lint.declared_objects import strings
from observatory.database.lint.declared_schema import walk
from observatory.database.lint.dynamic_sql import text_of_expression

_COMMENTS = {"SQL_COMMENT", "C_COMMENT"}
_OPENING = {"ASCII_40", "ASCII_91"}
_CLOSING = {"ASCII_41", "ASCII_93"}
_CONTROL = {"null", "exit", "continue", "commit", "rollback", "fetch", "move", "close", "get"}
_CONDITIONS = {"if": "then", "elsif": "then", "elseif": "then", "when": "then", "while": "loop"}
_ALONE = {"begin", "else", "loop", "exception", "declare"}


class Routine(NamedTuple):
    """The body of a function, procedure or DO block.

    Attributes:
        language: `plpgsql`, `sql`, …
        text: of the body; None where it is `statements`.
        statements: of a body that is SQL and not a text.
    """

    language: str
    text: str | None
    statements: tuple[ast.Node, ...] = ()


class Inner(NamedTuple):
    """A statement inside another one.

    Attributes:
        offset: of the statement in the outer one, or of the call that runs it.
        node: its syntax tree; None where it is unknown.
        located: whether places in the tree count from `offset`.
        unseen: why the statement is unknown.
    """

    offset: int
    node: ast.Node | None
    located: bool = False
    unseen: str = ""


def routine_of(node: ast.Node) -> Routine | None:
    """Return the body that a DO block runs, or that a statement defines."""
    if isinstance(node, ast.DoStmt):
        options = {option.defname: option.arg for option in node.args or ()}
    elif isinstance(node, ast.CreateFunctionStmt):
        options = {option.defname: option.arg for option in node.options or ()}
    else:
        return None
    named = options.get("language")
    language = str(named.sval).lower() if named else "plpgsql" if isinstance(node, ast.DoStmt) else "sql"
    body = options.get("as")
    texts = strings(body) if body is not None else ()
    if texts:
        return Routine(language, texts[0])
    return Routine(language, None, tuple(each for each in walk(node.sql_body) if _is_statement(each)))


def inner_statements(
    node: ast.Node, sql: str, routines: Mapping[str, Sequence[Routine]], *, done: set[int] | None = None
) -> Iterator[Inner]:
    """Yield the statements that a statement runs, also those in functions that it calls, each once.

    Args:
        node: the syntax tree.
        sql: the text of the statement.
        routines: defined so far, by name; several for an overloaded name.
        done: the ids of the bodies that were read.
    """
    done = set() if done is None else done
    for inner in _directly_inside(node, sql, routines, done):
        yield inner
        if inner.node is not None:
            for below in inner_statements(inner.node, "", routines, done=done):
                yield below._replace(offset=inner.offset, located=False)


def _directly_inside(
    node: ast.Node, sql: str, routines: Mapping[str, Sequence[Routine]], done: set[int]
) -> Iterator[Inner]:
    if isinstance(node, ast.DoStmt):
        block = routine_of(node)
        text = block.text if block else None
        start = sql.find(text) if text else -1
        for piece in _of_routine(block) if block else ():
            yield piece._replace(offset=start + piece.offset) if start >= 0 else piece._replace(offset=0, located=False)
    elif isinstance(node, ast.CreateSchemaStmt):
        yield from (Inner(0, element) for element in node.schemaElts or ())
    elif routines and not isinstance(node, ast.CreateFunctionStmt):
        for call in (each for each in walk(node) if isinstance(each, ast.FuncCall)):
            for routine in routines.get(str(call.funcname[-1].sval), ()):
                if id(routine) not in done:
                    done.add(id(routine))
                    pieces = _of_routine(routine)
                    yield from (piece._replace(offset=max(call.location, 0), located=False) for piece in pieces)


def _is_statement(node: ast.Node) -> bool:
    return type(node).__name__.endswith("Stmt")


def _of_routine(routine: Routine) -> Iterator[Inner]:
    if routine.text is None:
        yield from (Inner(0, node) for node in routine.statements)
    elif routine.language == "plpgsql":
        yield from _Block(routine.text).statements()
    elif routine.language == "sql":
        yield from _parsed(routine.text, 0)
    elif routine.language not in {"c", "internal"}:
        yield Inner(0, None, unseen=f"a body in {routine.language}")


def _parsed(sql: str, offset: int, *, located: bool = False) -> Iterator[Inner]:
    try:
        statements = pglast.parse_sql(sql)
    except pglast.Error:
        yield Inner(offset, None, unseen="a statement that the parser cannot read")
        return
    for raw in statements:
        yield Inner(offset, raw.stmt, located and len(statements) == 1)


class _Block:
    """The text of a block in PL/pgSQL, read token by token."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[Any] = []
        self._at = 0
        self._unreadable = False
        try:
            self._tokens = [token for token in parser.scan(text) if token.name not in _COMMENTS]
        except pglast.Error:
            self._unreadable = True

    def statements(self) -> Iterator[Inner]:
        """Yield the statements, and the expressions as SELECT."""
        if self._unreadable:
            yield Inner(0, None, unseen="a block that the parser cannot read")
        declaring = False
        while self._at < len(self._tokens):
            word = self._word(self._at)
            if word == "<<":
                self._at += 3
            elif word in _ALONE:
                declaring = word == "declare"
                self._at += 1
            elif word == ";":
                self._at += 1
            elif declaring:
                yield from self._declaration(self._until(";"))
            else:
                yield from self._statement(word)

    def _word(self, index: int) -> str:
        token = self._tokens[index]
        return str(self._text[token.start : token.end + 1]).lower()

    def _until(self, *ends: str) -> range:
        """Return the tokens up to one of the words, outside parentheses and CASE expressions, and go behind it."""
        start, depth, cases = self._at, 0, 0
        while self._at < len(self._tokens):
            name, word = self._tokens[self._at].name, self._word(self._at)
            if depth == 0 and cases == 0 and word in ends and (self._at > start or word == ";"):
                break
            depth += (name in _OPENING) - (name in _CLOSING)
            if ends != (";",) and self._at > start:
                cases += (word == "case") - (word == "end" and cases > 0)
            self._at += 1
        found = range(start, self._at)
        self._at += 1
        return found

    def _span(self, tokens: range) -> tuple[int, str]:
        """Return offset and text of tokens."""
        if not tokens:
            return 0, ""
        first, last = self._tokens[tokens[0]], self._tokens[tokens[-1]]
        return first.start, self._text[first.start : last.end + 1]

    def _find(self, tokens: range, *words: str) -> int | None:
        """Return the first of the words outside parentheses."""
        depth = 0
        for index in tokens:
            if depth == 0 and self._word(index) in words:
                return index
            depth += (self._tokens[index].name in _OPENING) - (self._tokens[index].name in _CLOSING)
        return None

    def _statement(self, word: str) -> Iterator[Inner]:
        if word in _CONDITIONS:
            yield from self._expression(self._until(_CONDITIONS[word])[1:])
        elif word == "case":
            self._at += 1
            if self._word(min(self._at, len(self._tokens) - 1)) != "when":
                yield from self._expression(self._until_before("when"))
        elif word in {"for", "foreach"}:
            yield from self._loop(self._until("loop"))
        elif word == "end":
            self._until(";")
        elif word in _CONTROL:
            yield from self._arguments(self._until(";"))
        else:
            yield from self._simple(word, self._until(";"))

    def _until_before(self, word: str) -> range:
        found = self._until(word)
        self._at -= 1
        return found

    def _simple(self, word: str, tokens: range) -> Iterator[Inner]:
        second, third = ([self._word(index) for index in tokens[1:3]] + ["", ""])[:2]
        if word == "execute":
            yield from self._dynamic(tokens[1:])
        elif word == "perform":
            yield from self._expression(tokens[1:])
        elif word == "return" and second == "query":
            yield from self._dynamic(tokens[3:]) if third == "execute" else self._sql(tokens[2:])
        elif word == "return":
            yield from self._expression(tokens[2:] if second == "next" else tokens[1:])
        elif word in {"raise", "assert"}:
            yield from self._arguments(tokens)
        elif word == "open":
            yield from self._cursor(tokens)
        elif (equals := self._find(tokens, ":=", "=")) is not None and self._is_target(range(tokens[0], equals)):
            yield from self._expression(range(equals + 1, tokens.stop))
        else:
            yield from self._sql(tokens)

    def _is_target(self, tokens: range) -> bool:
        """Return whether tokens are the left side of an assignment: `x`, `r.x`, `a[1]`."""
        words = [self._word(index) for index in tokens]
        return len(words) == 1 or "." in words or "[" in words

    def _declaration(self, tokens: range) -> Iterator[Inner]:
        start = self._find(tokens, ":=", "=", "default", "for", "is")
        if start is not None:
            rest = range(start + 1, tokens.stop)
            is_cursor = self._word(start) in {"for", "is"}
            yield from self._sql(rest) if is_cursor else self._expression(rest)

    def _cursor(self, tokens: range) -> Iterator[Inner]:
        start = self._find(tokens, "for")
        if start is None:
            yield from self._arguments(tokens)
        elif start + 1 < tokens.stop and self._word(start + 1) == "execute":
            yield from self._dynamic(range(start + 2, tokens.stop))
        else:
            yield from self._sql(range(start + 1, tokens.stop))

    def _loop(self, tokens: range) -> Iterator[Inner]:
        start = self._find(tokens, "in")
        if start is None:
            yield from self._arguments(tokens)
            return
        rest = range(start + 1, tokens.stop)
        word = self._word(rest[0]) if rest else ""
        if word == "execute":
            yield from self._dynamic(rest[1:])
        elif word in {"select", "with", "values", "table", "insert", "update", "delete", "merge", "("}:
            yield from self._sql(rest)
        else:  # a range of numbers, an array, or an open cursor
            yield from self._arguments(rest)

    def _expression(self, tokens: range) -> Iterator[Inner]:
        offset, text = self._span(tokens)
        if text:
            yield from _parsed(f"SELECT {text}", offset)

    def _arguments(self, tokens: range) -> Iterator[Inner]:
        """Yield each call in tokens that are no expression as a whole."""
        for index in tokens[1:]:
            if self._word(index) == "(" and self._tokens[index - 1].name != "ASCII_44":
                name = self._word(index - 1).rsplit(".", 1)[-1]
                if name.isidentifier():
                    yield from _parsed(f"SELECT {name}()", self._tokens[index - 1].start)

    def _sql(self, tokens: range) -> Iterator[Inner]:
        offset, text = self._span(tokens)
        into = self._find(tokens, "into")
        if into is not None and self._word(into - 1) in {"insert", "merge"}:
            into = self._find(range(into + 1, tokens.stop), "into")
        if into is not None:
            text = self._without_targets(tokens, into)
        yield from _parsed(text, offset, located=True)

    def _without_targets(self, tokens: range, into: int) -> str:
        """Return the statement without `INTO variable, …`, which only PL/pgSQL has, at the same places."""
        end = into + 1
        if end < tokens.stop and self._word(end) == "strict":
            end += 1
        end += 1
        while end + 1 < tokens.stop and self._word(end) in {",", "."}:
            end += 2
        first, start = self._tokens[tokens[0]].start, self._tokens[into].start
        stop = self._tokens[end - 1].end + 1 if end - 1 < tokens.stop else len(self._text)
        last = self._tokens[tokens[-1]].end + 1
        return f"{self._text[first:start]}{' ' * (stop - start)}{self._text[stop:last]}"

    def _dynamic(self, tokens: range) -> Iterator[Inner]:
        end = self._find(tokens, "into", "using")
        offset, text = self._span(range(tokens.start, end) if end is not None else tokens)
        sql = text_of_expression(text)
        if sql is None:
            yield Inner(offset, None, unseen="EXECUTE of a text that is put together when it runs")
        else:
            yield from _parsed(sql, offset)
        yield from self._expression(tokens if end is None else range(tokens.start, end))
