"""Parses the SQL of a migration file with PostgreSQL's own parser.

Owns splitting, headers, and the refusal of statements that no migration may contain. Imports pglast, so import this
module only where migrations are pending.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import pglast
from pglast import ast
from pglast.enums import DiscardMode

from observatory.database.errors import MigrationFileError
from observatory.database.excerpts import excerpt
from observatory.database.migrations.files import Migration
from observatory.database.migrations.procedural_blocks import body_start, offset_of_line, transaction_commands

_HEADER = re.compile(r"^--[ \t]*(?P<name>transaction|phase)[ \t]*:[ \t]*(?P<value>.*?)[ \t]*$", re.MULTILINE)
_HEADER_VALUES = {"transaction": ("true", "false"), "phase": ("expand", "contract")}  # the first is the default
_UNTERMINATED = re.compile(r"unterminated (?P<what>/\* comment|[a-z- ]+?) at or near")
_META_COMMAND = re.compile(r"\\\S*")
# Text right before rows that psql would send, as a dump contains them.
_COPY_WITH_ROWS = re.compile(r"^[ \t]*(?P<copy>COPY\s[^;]*\sFROM\s+STDIN\b[^;]*;)\s*\Z", re.IGNORECASE | re.MULTILINE)
# Only statements that start like this can be refused. The others need no syntax tree, which would take gigabytes for
# 10 MB of INSERT.
_CANDIDATE = re.compile(
    r"(BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE|COPY|DISCARD|DO)\b", re.IGNORECASE
)

_ONE_TRANSACTION = "each file is one transaction, unless its first line is '-- transaction: false'"
_TRANSACTION_EACH = (
    "with '-- transaction: false' each statement is a transaction. Statements that belong together go into a file "
    "without that line"
)

_INDEX = re.compile(r"CREATE\s+(UNIQUE\s+)?INDEX\b", re.IGNORECASE)

Phase = Literal["expand", "contract"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """One statement of a file.

    Attributes:
        sql: its text without the semicolon.
        offset: of its first character in the file; counts from 0.
    """

    sql: str
    offset: int

    @property
    def sha256(self) -> str:
        """SHA-256 of its text, in hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """A parsed migration.

    Attributes:
        migration: the file.
        transactional: all statements run in one transaction; False with the header `-- transaction: false`.
        phase: `contract` with the header `-- phase: contract`: it removes what older releases need; else `expand`.
        statements: in order, at least one.
    """

    migration: Migration
    transactional: bool
    phase: Phase
    statements: tuple[Statement, ...]


def check_syntax(migrations: Iterable[Migration]) -> None:
    """Parse migrations without a database.

    Raises:
        MigrationFileError: a file with unusable SQL; the message has file, line and column.
    """
    for migration in migrations:
        parse(migration)


def parse(migration: Migration) -> Script:
    """Parse a migration.

    Raises:
        MigrationFileError: a syntax error, no statement, an unusable header, or a statement that needs psql or would
            end the migration's transaction.
    """
    headers = _headers(migration)
    statements = _split(migration)
    if not statements:
        raise MigrationFileError(f"{migration.place()}: contains no statement. Write one, or delete the file")
    transactional = headers["transaction"] == "true"
    for statement in statements:
        _refuse_unusable(migration, statement, transactional=transactional)
        if not transactional:
            _refuse_nameless_index(migration, statement)
    return Script(
        migration=migration,
        transactional=transactional,
        phase="contract" if headers["phase"] == "contract" else "expand",
        statements=statements,
    )


def phase_of(source: str) -> Phase:
    """Return the phase of an applied file, whose headers are usable."""
    values = [header["value"] for header in _HEADER.finditer(source) if header["name"] == "phase"]
    return "contract" if values[-1:] == ["contract"] else "expand"


def _headers(migration: Migration) -> dict[str, str]:
    """Return the headers in the comments above the first statement, by name."""
    values = {name: allowed[0] for name, allowed in _HEADER_VALUES.items()}
    for header in _HEADER.finditer(migration.sql):
        name, value, place = header["name"], header["value"], migration.place(header.start())
        above = migration.sql[: header.start()].splitlines()
        if len(list(takewhile(lambda line: not line or line.startswith("--"), above))) < len(above):
            raise MigrationFileError(
                f"{place}: the {name} header has no effect here. Move it above the first statement"
            )
        if value not in _HEADER_VALUES[name]:
            raise MigrationFileError(
                f"{place}: the {name} header is '{excerpt(value)}'. Write {' or '.join(_HEADER_VALUES[name])}"
            )
        values[name] = value
    return values


def _split(migration: Migration) -> tuple[Statement, ...]:
    try:
        slices = pglast.split(migration.sql, only_slices=True)
    except pglast.Error as error:
        message, offset = error.args
        offset = len(migration.sql) if offset is None else offset  # the parser gives no offset at the end of the input
        raise MigrationFileError(_syntax_message(migration, message, offset)) from error
    return tuple(Statement(sql=migration.sql[part], offset=part.start) for part in slices)


def _syntax_message(migration: Migration, message: str, offset: int) -> str:
    copy = _COPY_WITH_ROWS.search(migration.sql[:offset])
    if copy:
        return _copy_message(migration.place(copy.start("copy")), "FROM STDIN")
    meta_command = _META_COMMAND.match(migration.sql, offset)
    if meta_command:
        return (
            f"{migration.place(offset)}: {excerpt(meta_command.group())} is a command of psql, not SQL. Migrations "
            "do not run in psql: write the same as SQL"
        )
    return f"{migration.place(offset)}: {excerpt(message)}. {_syntax_remedy(message)}"


def _syntax_remedy(message: str) -> str:
    unterminated = _UNTERMINATED.match(message)
    if unterminated:
        return f"The {unterminated['what']} starts here and has no end in the file: add the end"
    return "Correct the statement"


def builds_in_steps(index: ast.IndexStmt) -> bool:
    """Return whether an index is built in several transactions, so that an interruption leaves it invalid."""
    return bool(index.concurrent) or any(each.defname == "transaction_per_chunk" for each in index.options or ())


def _refuse_nameless_index(migration: Migration, statement: Statement) -> None:
    if not _INDEX.match(statement.sql):
        return
    node = pglast.parse_sql(statement.sql)[0].stmt
    if builds_in_steps(node) and node.idxname is None:
        raise MigrationFileError(
            f"{migration.place(statement.offset)}: the index has no name. Name it, so that the next run finds it after "
            "an interrupted build"
        )


def _copy_message(place: str, direction: str) -> str:
    return f"{place}: COPY {direction} needs a client. Write the rows into the file as VALUES"


def _refuse_unusable(migration: Migration, statement: Statement, *, transactional: bool) -> None:
    if not _CANDIDATE.match(statement.sql):
        return
    place = migration.place(statement.offset)
    node = pglast.parse_sql(statement.sql)[0].stmt
    if isinstance(node, ast.TransactionStmt):
        word = statement.sql.split(maxsplit=1)[0].upper()
        raise MigrationFileError(
            f"{place}: {word} would end or split the transaction of the {'file' if transactional else 'statement'} and "
            f"its ledger row. Remove it: {_ONE_TRANSACTION if transactional else _TRANSACTION_EACH}"
        )
    if isinstance(node, ast.DoStmt):
        _refuse_block(migration, statement, transactional=transactional)
    if isinstance(node, ast.DiscardStmt) and node.target == DiscardMode.DISCARD_ALL:
        raise MigrationFileError(f"{place}: DISCARD ALL would release the migration lock. Remove it")
    if isinstance(node, ast.CopyStmt) and node.filename is None:
        raise MigrationFileError(_copy_message(place, "FROM STDIN" if node.is_from else "TO STDOUT"))


def _refuse_block(migration: Migration, statement: Statement, *, transactional: bool) -> None:
    """Refuse a DO that ends the transaction of its file, or has a command that PL/pgSQL refuses when it runs."""
    for line, command in transaction_commands(statement.sql):
        body = statement.offset + (body_start(statement.sql) or 0)
        place = migration.place(offset_of_line(migration.sql, body, line))
        if command not in {"COMMIT", "ROLLBACK"}:
            raise MigrationFileError(
                f"{place}: {command} is no command of PL/pgSQL. Use BEGIN … EXCEPTION … END in place of a savepoint"
            )
        if transactional:
            raise MigrationFileError(
                f"{place}: {command} would end the transaction of the file and its ledger row. Remove it, or move the "
                "block to its own file with the first line '-- transaction: false'"
            )
