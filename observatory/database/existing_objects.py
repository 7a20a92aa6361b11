"""Finds objects of the database that pending migrations would create, before anything is touched.

Sees CREATE statements of relations, types and schemas. An earlier pending statement that may remove the object, such
as DROP or DO, counts as doing so: PostgreSQL then decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pglast
import psycopg
from pglast import ast
from psycopg import sql

from observatory.database.errors import DatabaseError, ObjectsInTheWayError
from observatory.database.migrations import ledger
from observatory.database.migrations.history import History
from observatory.database.migrations.statements import Script

_SHOWN = 5
_CREATE = re.compile(
    r"CREATE\b(?!\s+(OR\s+REPLACE|EXTENSION|FUNCTION|PROCEDURE|TRIGGER|POLICY|ROLE|RULE)\b)", re.IGNORECASE
)
# The usual form, whose names need no tree: that takes 0.3 ms, and a thousand files have thousands.
_PLAIN = re.compile(
    r"CREATE\s+(?:(?:UNLOGGED\s+)?TABLE\s+(?!IF\s)(?P<table>[a-z_]\w*)|"
    r"(?:UNIQUE\s+)?INDEX\s+(?P<index>[a-z_]\w*)\s+ON\s+(?!ONLY\s)(?P<owner>[a-z_]\w*))(?=[\s(])",
    re.IGNORECASE | re.ASCII,
)
_REMOVES = re.compile(
    r"(DROP|DO|CALL|EXECUTE|SELECT|WITH)\b|ALTER\b.*\b(DROP|RENAME|SCHEMA)\b", re.IGNORECASE | re.DOTALL
)
_CASCADES = re.compile(r"(DROP|DO|ALTER)\b.*\bCASCADE\b", re.IGNORECASE | re.DOTALL)
_SETS_PATH = re.compile(r"(SET|SELECT)\b.*\bsearch_path\b", re.IGNORECASE | re.DOTALL)

_EXISTING = """
    SELECT number FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS created(kind, name, number)
    WHERE CASE kind WHEN 'schema' THEN to_regnamespace(name)::oid WHEN 'type' THEN to_regtype(name)::oid
                    ELSE to_regclass(name)::oid END IS NOT NULL
    ORDER BY number
"""


class _Created(NamedTuple):
    """An object that a statement creates; `owner` is the table of an index, which takes it along when it is dropped."""

    place: str
    kind: str
    schema: str | None
    name: str
    owner: str

    @property
    def identifier(self) -> str:
        if self.kind == "schema":
            return sql.Identifier(self.name).as_string()
        return sql.Identifier(self.schema or "public", self.name).as_string()

    def __str__(self) -> str:
        shown = f"{self.schema}.{self.name}" if self.schema else self.name
        return f"{self.place}: {self.kind} {shown} already exists"


def refuse_existing_objects(
    connection: psycopg.Connection,
    *,
    conninfo: str,
    migrations: Path,
    history: History,
    scripts: Sequence[Script],
) -> None:
    """Refuse pending migrations whose objects exist.

    Args:
        connection: to the database.
        conninfo: of the same database.
        migrations: directory of the files.
        history: of the database.
        scripts: the pending migrations; interrupted ones are not checked, because they have made some of their objects.

    Raises:
        ObjectsInTheWayError: names the objects; where the database has no ledger, also the option that records it.
    """
    begun = {entry.version for entry in ledger.read(connection) if not entry.complete}
    created = list(_created([script for script in scripts if script.migration.version not in begun]))
    if not created:
        return
    values = [[each.kind for each in created], [each.identifier for each in created]]
    found = [created[number - 1] for (number,) in connection.execute(_EXISTING, values).fetchall()]
    if found:
        more = f", and {len(found) - _SHOWN} more objects" if len(found) > _SHOWN else ""
        named = ", ".join(map(str, found[:_SHOWN]))
        raise ObjectsInTheWayError(f"{named}{more}. Nothing was changed. {_remedy(conninfo, migrations, history)}")


def _remedy(conninfo: str, migrations: Path, history: History) -> str:
    if history.version:
        return "Rename or drop what is in the way, or write IF NOT EXISTS where the existing object is the right one"
    # Imported here: the catalogue is read only for this message.
    from observatory.database.baseline import matching_version  # noqa: PLC0415

    try:
        version = matching_version(conninfo, migrations=migrations)
    except DatabaseError:
        version = None
    if version:
        return (
            f"Other tools made this database, and it has the objects of version {version}. Record that with "
            f"`observatory deploy database --baseline {version}` (and the --database-url that you gave), then deploy"
        )
    return (
        "Other tools made this database. `observatory deploy database --baseline N --dry-run` compares it with version "
        "N of the schema, and without --dry-run records that version (add the --database-url that you gave)"
    )


def _created(scripts: Sequence[Script]) -> Iterator[_Created]:
    """Yield what the scripts create, unless an earlier statement may have removed it."""
    removing: list[str] = []
    cascades = False
    for script in scripts:
        own_path = False
        for statement in script.statements:
            text = statement.sql
            own_path = own_path or bool(_SETS_PATH.match(text))
            if _REMOVES.match(text):
                removing.append(text.lower())
                cascades = cascades or bool(_CASCADES.match(text))
            elif not cascades and _CREATE.match(text):
                for kind, schema, name, owner in _plain(text) or _objects(pglast.parse_sql(text)[0].stmt):
                    place = script.migration.place(statement.offset)
                    each = _Created(place, kind, schema, name, owner)
                    if not ((own_path and schema is None) or _may_be_removed(each, removing)):
                        yield each


def _plain(text: str) -> list[tuple[str, str | None, str, str]]:
    if not (match := _PLAIN.match(text)):
        return []
    table, index, owner = (name and name.lower() for name in match.group("table", "index", "owner"))
    return [("table", None, table, table)] if table else [("index", None, index, owner)]


def _may_be_removed(each: _Created, removing: Sequence[str]) -> bool:
    names = {name.lower() for name in (each.name, each.owner, each.schema or each.name)}
    return any(name in text for text in removing for name in names)


def _objects(node: Any) -> Iterator[tuple[str, str | None, str, str]]:
    """Yield kind, schema, name and table of what a statement creates and does not accept as existing."""
    match node:
        case ast.CreateStmt() | ast.CreateForeignTableStmt():
            base = node if isinstance(node, ast.CreateStmt) else node.base
            if not base.if_not_exists:
                yield from _relation("table", base.relation)
        case ast.CreateTableAsStmt() if not node.if_not_exists:
            yield from _relation("table" if node.objtype.name == "OBJECT_TABLE" else "view", node.into.rel)
        case ast.ViewStmt() if not node.replace:
            yield from _relation("view", node.view)
        case ast.CreateSeqStmt() if not node.if_not_exists:
            yield from _relation("sequence", node.sequence)
        case ast.IndexStmt() if not node.if_not_exists and node.idxname:
            yield "index", node.relation.schemaname, node.idxname, node.relation.relname
        case ast.CreateSchemaStmt() if not node.if_not_exists and node.schemaname:
            yield "schema", None, node.schemaname, node.schemaname
        case ast.CompositeTypeStmt():
            yield from _relation("type", node.typevar)
        case ast.CreateEnumStmt() | ast.CreateRangeStmt():
            yield _type(node.typeName)
        case ast.CreateDomainStmt():
            yield _type(node.domainname)
        case _:
            return


def _relation(kind: str, relation: Any) -> Iterator[tuple[str, str | None, str, str]]:
    if relation.relpersistence != "t":
        yield kind, relation.schemaname, relation.relname, relation.relname


def _type(parts: Sequence[Any]) -> tuple[str, str | None, str, str]:
    names = [part.sval for part in parts]
    return "type", names[-2] if len(names) > 1 else None, names[-1], names[-1]
