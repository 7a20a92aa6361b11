"""The privileges that applied migrations grant on relations, read from the sources in the ledger.

`grant_access` keeps them, and a verification expects them. The linter refuses grants that are not allowed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

from observatory.database.migrations.repeatable import newest_sources
from observatory.database.roles.grants import Grants, Target

if TYPE_CHECKING:
    from pglast import ast

ALL = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER", "MAINTAIN"})
_DEFAULT_SCHEMA = "public"  # of a name without a schema: the first one of a deployment's search_path

_EXISTS = "SELECT to_regclass('observatory.schema_migrations') IS NOT NULL"
# Later files may rename or drop what an earlier one grants on.
_SOURCES = """
    SELECT source FROM observatory.schema_migrations
    WHERE statements_done = statements_total AND version >= (
        SELECT min(version) FROM observatory.schema_migrations WHERE source ~* '\\mGRANT\\M')
    ORDER BY version
"""


def read_grants(connection: psycopg.Connection, roles: Collection[str]) -> Grants:
    """Return the privileges that migrations grant these roles on tables and views.

    Args:
        connection: as the role that owns the ledger.
        roles: names of the roles.

    Raises:
        psycopg.Error: PostgreSQL rejected a query.
    """
    if not roles or connection.execute(_EXISTS).fetchone() != (True,):
        return {}
    sources = [source for (source,) in connection.execute(_SOURCES)] + newest_sources(connection)
    if not sources:
        return {}
    reader = _Reader(frozenset(roles))
    for source in sources:
        reader.read(source)
    return {target: frozenset(held) for target, held in reader.grants.items() if held}


@dataclass
class _Reader:
    """The grants so far."""

    roles: frozenset[str]
    grants: dict[Target, set[str]] = field(default_factory=dict)
    schema: str = _DEFAULT_SCHEMA

    def read(self, source: str) -> None:
        """Follow the statements of a file, also those in DO blocks and in functions that it calls."""
        # Imported here: the SQL parser costs more time than a deployment with nothing to do.
        import pglast  # noqa: PLC0415

        from observatory.database.lint.inner_statements import Routine, inner_statements, routine_of  # noqa: PLC0415

        self.schema, routines = _DEFAULT_SCHEMA, dict[str, list[Routine]]()
        for raw in pglast.parse_sql(source):
            node, text = raw.stmt, source[raw.stmt_location :]
            if isinstance(node, pglast.ast.CreateFunctionStmt) and (routine := routine_of(node)):
                routines.setdefault(node.funcname[-1].sval, []).append(routine)
            self._follow(node)
            for inner in inner_statements(node, text, routines):
                if inner.node is not None:
                    self._follow(inner.node)

    def _follow(self, node: ast.Node) -> None:
        from pglast import ast  # noqa: PLC0415 - see `read`
        from pglast.enums import ObjectType  # noqa: PLC0415

        tables = {ObjectType.OBJECT_TABLE, ObjectType.OBJECT_VIEW, ObjectType.OBJECT_MATVIEW}
        match node:
            case ast.VariableSetStmt(name="search_path", args=[first, *_]):
                self.schema = first.val.sval
            case ast.GrantStmt(objtype=ObjectType.OBJECT_TABLE):
                self._change(node)
            case ast.RenameStmt(renameType=kind) if kind in tables and node.relation:
                self._move(node.relation, relation=node.newname)
            case ast.AlterObjectSchemaStmt(objectType=kind) if kind in tables and node.relation:
                self._move(node.relation, schema=node.newschema)
            case ast.DropStmt(removeType=kind) if kind in tables:
                for names in node.objects:
                    schema, relation = ([self.schema, *(each.sval for each in names)])[-2:]
                    self._move(ast.RangeVar(schemaname=schema, relname=relation))

    def _change(self, grant: Any) -> None:
        for target, privileges in _targets(grant, self.roles, self.schema):
            held = self.grants.setdefault(target, set())
            held.update(privileges) if grant.is_grant else held.difference_update(privileges)

    def _move(self, moved: Any, *, schema: str | None = None, relation: str | None = None) -> None:
        """Give a relation's grants its new name or schema; without either, forget them."""
        name = (moved.schemaname or self.schema, moved.relname)
        for target in [each for each in self.grants if (each.schema, each.relation) == name]:
            held = self.grants.pop(target)
            if schema or relation:
                self.grants[target._replace(schema=schema or name[0], relation=relation or name[1])] = held


def _targets(grant: Any, roles: Collection[str], schema: str) -> Iterator[tuple[Target, frozenset[str]]]:
    from pglast import ast  # noqa: PLC0415 - see `_Reader.read`

    relations = [each for each in grant.objects or () if isinstance(each, ast.RangeVar)]
    for relation in relations:
        for role in (each.rolename for each in grant.grantees or () if each.rolename in roles):
            target = Target(role, relation.schemaname or schema, relation.relname)
            if not grant.privileges:
                yield target, ALL
            for privilege in grant.privileges or ():
                names = ALL if privilege.priv_name is None else frozenset({privilege.priv_name.upper()})
                columns = [each.sval for each in privilege.cols or ()] or [None]
                yield from ((target._replace(column=column), names) for column in columns)
