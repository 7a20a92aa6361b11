"""Reads from a statement's syntax tree which objects it creates or drops. Imports pglast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pglast
from pglast import ast
from pglast.enums import AlterTableType, ObjectType

from observatory.database.migrations.statements import Statement

DEFAULT_SCHEMA = "public"
_RELATIONS = {
    *(ObjectType.OBJECT_TABLE, ObjectType.OBJECT_VIEW, ObjectType.OBJECT_MATVIEW),
    *(ObjectType.OBJECT_INDEX, ObjectType.OBJECT_SEQUENCE, ObjectType.OBJECT_TYPE, ObjectType.OBJECT_DOMAIN),
}
_ROUTINES = {ObjectType.OBJECT_FUNCTION, ObjectType.OBJECT_PROCEDURE, ObjectType.OBJECT_ROUTINE}


def created(statement: Statement) -> Iterator[tuple[str, str, str]]:
    """Yield kind, name with schema, and column of each object that the statement fails to create where it exists.

    Kinds are relation, type, schema, function and column; the column is empty for the others. A statement with IF NOT
    EXISTS or OR REPLACE creates none in this sense.
    """
    for tree in _trees(statement):
        match tree:
            case ast.CreateStmt(if_not_exists=False) | ast.CreateSeqStmt(if_not_exists=False):
                name = tree.relation if isinstance(tree, ast.CreateStmt) else tree.sequence
                yield "relation", _qualified(name), ""
            case ast.CreateTableAsStmt(if_not_exists=False):
                yield "relation", _qualified(tree.into.rel), ""
            case ast.ViewStmt(replace=False):
                yield "relation", _qualified(tree.view), ""
            case ast.IndexStmt(if_not_exists=False) if tree.idxname:
                yield "relation", f"{tree.relation.schemaname or DEFAULT_SCHEMA}.{tree.idxname}", ""
            case ast.CompositeTypeStmt():
                yield "type", _qualified(tree.typevar), ""
            case ast.CreateEnumStmt():
                yield "type", _joined(tree.typeName), ""
            case ast.CreateDomainStmt():
                yield "type", _joined(tree.domainname), ""
            case ast.CreateSchemaStmt(if_not_exists=False) if tree.schemaname:
                yield "schema", tree.schemaname, ""
            case ast.CreateFunctionStmt(replace=False):
                yield "function", _joined(tree.funcname), ""
            case ast.AlterTableStmt():
                yield from _columns(tree)


def dropped(statement: Statement) -> set[str]:
    """Return the names, with schemas, of the relations, types, schemas and routines that the statement drops."""
    names: set[str] = set()
    for tree in _trees(statement):
        if not isinstance(tree, ast.DropStmt):
            continue
        for each in tree.objects:
            if tree.removeType in _ROUTINES:
                names.add(_joined(each.objname))
            elif tree.removeType == ObjectType.OBJECT_SCHEMA:
                names.add(each.sval)
            elif tree.removeType in _RELATIONS:
                names.add(_joined(getattr(each, "names", each)))
    return names


def _trees(statement: Statement) -> list[Any]:
    return [raw.stmt for raw in pglast.parse_sql(statement.sql)]


def _columns(tree: Any) -> Iterator[tuple[str, str, str]]:
    for command in tree.cmds:
        if command.subtype == AlterTableType.AT_AddColumn and not command.missing_ok:
            yield "column", _qualified(tree.relation), command.def_.colname


def _qualified(relation: Any) -> str:
    return f"{relation.schemaname or DEFAULT_SCHEMA}.{relation.relname}"


def _joined(names: Sequence[Any]) -> str:
    words = [name.sval for name in names]
    return ".".join(words if len(words) > 1 else (DEFAULT_SCHEMA, *words))
