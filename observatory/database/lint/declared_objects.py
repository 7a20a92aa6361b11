"""Which migration created an object: a release cannot need what is newer than the schema that it was built for.

Holds what the rules about removals need. An object that no migration declares may be older than all of them, so its
number is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pglast import ast
from pglast.enums import AlterTableType, ConstrType, ObjectType, VariableSetKind

from observatory.database.lint.declared_schema import Key, function_name, text_of, walk

Name = tuple[str, ...]
"""Kind and name of an object: `("relation", "public", "users")`, `("column", "public", "users", "email")`."""

TEMPORARY = "pg_temp"
_DEFAULT_PATH = ("public",)
_RELATIONS = {
    *(ObjectType.OBJECT_TABLE, ObjectType.OBJECT_VIEW, ObjectType.OBJECT_MATVIEW, ObjectType.OBJECT_SEQUENCE),
    *(ObjectType.OBJECT_INDEX, ObjectType.OBJECT_FOREIGN_TABLE),
}
_ROUTINES = {
    *(ObjectType.OBJECT_FUNCTION, ObjectType.OBJECT_PROCEDURE, ObjectType.OBJECT_ROUTINE),
    *(ObjectType.OBJECT_AGGREGATE,),
}
_ON_TABLES = {
    ObjectType.OBJECT_TRIGGER: "trigger",
    ObjectType.OBJECT_POLICY: "policy",
    ObjectType.OBJECT_RULE: "rule",
    ObjectType.OBJECT_TABCONSTRAINT: "constraint",
}
_CONSTRAINT_SUFFIXES = {
    ConstrType.CONSTR_PRIMARY: "pkey",
    ConstrType.CONSTR_UNIQUE: "key",
    ConstrType.CONSTR_CHECK: "check",
    ConstrType.CONSTR_FOREIGN: "fkey",
    ConstrType.CONSTR_EXCLUSION: "excl",
}


class ColumnType(NamedTuple):
    """The type of a column: PostgreSQL's internal name with `[]` for arrays, and its modifiers (a length, digits)."""

    name: str
    modifiers: tuple[int, ...]


class DeclaredObjects:
    """The objects that the statements so far declare.

    Attributes:
        constraints: the kind of each named constraint, by schema, table and name.
        unique_indexes: whether an index is unique, by schema and name.
        types: of columns, by schema, table and column.
        views: the names of the columns of each view; None where they are not in the text.
        search_path: of the file.
    """

    def __init__(self) -> None:
        self._created: dict[Name, int] = {}
        self._temporary: set[Key] = set()
        self.constraints: dict[Name, ConstrType] = {}
        self.unique_indexes: dict[Key, bool] = {}
        self.types: dict[Name, ColumnType] = {}
        self.views: dict[Key, tuple[str, ...] | None] = {}
        self.search_path: tuple[str, ...] = _DEFAULT_PATH

    def start_file(self) -> None:
        """Forget what ends with a file: its session's search path and its temporary tables."""
        self.search_path = _DEFAULT_PATH
        for key in self._temporary:
            self._forget(("relation", *key))
        self._temporary.clear()

    def created(self, name: Name) -> int:
        """Return the number of the migration that created an object; 0 where no migration declares it."""
        if name[0] in {"column", "constraint", "trigger", "policy", "rule"} and name not in self._created:
            return self._created.get(("relation", *name[1:3]), 0)
        return self._created.get(name, 0)

    def resolve(self, names: Sequence[str], kind: str = "relation") -> Key:
        """Return schema and name; a name without a schema is looked up as PostgreSQL does."""
        if len(names) > 1:
            return (names[-2], names[-1])
        path = (TEMPORARY, *self.search_path)
        return next(
            ((schema, names[0]) for schema in path if (kind, schema, names[0]) in self._created),
            (
                self.search_path[0],
                names[0],
            ),
        )

    def relation(self, node: ast.RangeVar) -> Key:
        """Return schema and name of a relation that a statement refers to."""
        return self.resolve([each for each in (node.schemaname, node.relname) if each])

    def apply(self, node: ast.Node, version: int) -> None:
        """Apply the effects of a statement."""
        match node:
            case ast.SelectStmt(intoClause=None):
                self._call_set_config(node)
            case ast.CreateStmt():
                self._create_table(node, version)
            case ast.AlterTableStmt(objtype=ObjectType.OBJECT_TABLE):
                self._alter_table(node, version)
            case ast.RenameStmt():
                self._rename(node)
            case ast.DropStmt():
                for name in dropped(node, self):
                    self._forget(name)
            case ast.VariableSetStmt(name="search_path"):
                self._set_path(node)
            case ast.CreateSchemaStmt():
                self._declare(("schema", str(node.schemaname)), version, keep=bool(node.if_not_exists))
                for element in node.schemaElts or ():
                    self.apply(element, version)
            case _:
                self._create_other(node, version)

    def _declare(self, name: Name, version: int, *, keep: bool = False) -> None:
        """Note who created an object; `keep` where the statement does nothing if it exists."""
        if keep:
            self._created.setdefault(name, version)
        else:
            self._created[name] = version

    def _forget(self, name: Name) -> None:
        tables: tuple[dict[Name, Any], ...] = (self._created, self.constraints, self.types)
        for table in tables:
            for each in [each for each in table if each == name or (name[0] == "relation" and each[1:3] == name[1:])]:
                del table[each]
        if name[0] == "relation":
            self.views.pop((name[1], name[2]), None)
            self.unique_indexes.pop((name[1], name[2]), None)

    def _new_key(self, node: ast.RangeVar) -> Key:
        """Return schema and name of a relation that a statement creates."""
        if node.relpersistence == "t":
            self._temporary.add((TEMPORARY, str(node.relname)))
            return (TEMPORARY, str(node.relname))
        return (str(node.schemaname or self.search_path[0]), str(node.relname))

    def _create_table(self, node: ast.CreateStmt, version: int) -> None:
        key, keep = self._new_key(node.relation), bool(node.if_not_exists)
        if keep and ("relation", *key) in self._created:
            return
        self._declare(("relation", *key), version)
        for element in node.tableElts or ():
            if isinstance(element, ast.ColumnDef):
                self._add_column(key, element, version, keep=False)
            elif isinstance(element, ast.Constraint):
                self._add_constraint(key, element, version)

    def _add_column(self, key: Key, column: ast.ColumnDef, version: int, *, keep: bool) -> None:
        name = ("column", *key, str(column.colname))
        if keep and (name in self._created or name in self.types):
            return
        self._declare(name, version)
        self.types[name] = column_type(column.typeName)
        for constraint in column.constraints or ():
            self._add_constraint(key, constraint, version, column=str(column.colname))

    def _add_constraint(self, key: Key, node: ast.Constraint, version: int, column: str | None = None) -> None:
        suffix = _CONSTRAINT_SUFFIXES.get(node.contype)
        if suffix is None and not node.conname:
            return
        columns = [column] if column else [str(each.sval) for each in node.keys or node.fk_attrs or ()]
        parts = [] if suffix == "pkey" else [each for each in columns if each]
        name = ("constraint", *key, str(node.conname or "_".join([key[1], *parts, str(suffix)])))
        self._declare(name, version)
        self.constraints[name] = node.contype

    def _alter_table(self, node: ast.AlterTableStmt, version: int) -> None:
        key = self.relation(node.relation)
        for command in node.cmds or ():
            match command.subtype:
                case AlterTableType.AT_AddColumn:
                    self._add_column(key, command.def_, version, keep=bool(command.missing_ok))
                case AlterTableType.AT_AlterColumnType:
                    self.types["column", *key, command.name] = column_type(command.def_.typeName)
                case AlterTableType.AT_DropColumn:
                    self._forget(("column", *key, command.name))
                case AlterTableType.AT_AddConstraint:
                    self._add_constraint(key, command.def_, version)
                case AlterTableType.AT_DropConstraint:
                    self._forget(("constraint", *key, command.name))

    def _rename(self, node: ast.RenameStmt) -> None:
        old = renamed(node, self)
        if old is None:
            return
        new = (*old[:-1], str(node.newname))
        if old[0] != "relation":
            if old in self._created:
                self._created[new] = self._created.pop(old)
            if old in self.types:
                self.types[new] = self.types.pop(old)
            return
        tables: tuple[dict[Name, Any], ...] = (self._created, self.constraints, self.types)
        for table in tables:
            for each in [each for each in table if each[1:3] == old[1:]]:
                table[each[0], *new[1:], *each[3:]] = table.pop(each)

    def _set_path(self, node: ast.VariableSetStmt) -> None:
        if node.kind != VariableSetKind.VAR_SET_VALUE:
            self.search_path = _DEFAULT_PATH
            return
        self._use_path(text_of(each) or "" for each in node.args or ())

    def _call_set_config(self, node: ast.SelectStmt) -> None:
        for each in walk(node):
            if isinstance(each, ast.FuncCall) and function_name(each) == "set_config" and len(each.args or ()) > 1:
                name, value = (text_of(argument) for argument in each.args[:2])
                if (name or "").lower() == "search_path" and value is not None:
                    self._use_path([value])

    def _use_path(self, texts: Iterable[str]) -> None:
        self.search_path = (
            tuple(part.strip(' "') for text in texts for part in text.split(",") if part) or _DEFAULT_PATH
        )

    def _create_other(self, node: ast.Node, version: int) -> None:
        match node:
            case ast.ViewStmt():
                key = self._new_key(node.view)
                self._declare(("relation", *key), version, keep=bool(node.replace))
                self.views[key] = view_columns(node)
            case ast.CreateTableAsStmt():
                self._declare(("relation", *self._new_key(node.into.rel)), version, keep=bool(node.if_not_exists))
            case ast.SelectStmt(intoClause=ast.IntoClause() as into):
                self._declare(("relation", *self._new_key(into.rel)), version)
            case ast.CreateSeqStmt():
                self._declare(("relation", *self._new_key(node.sequence)), version, keep=bool(node.if_not_exists))
            case ast.IndexStmt() if node.idxname:
                schema, _ = self.relation(node.relation)
                self._declare(("relation", schema, str(node.idxname)), version, keep=bool(node.if_not_exists))
                self.unique_indexes.setdefault((schema, str(node.idxname)), bool(node.unique))
            case ast.CreateTrigStmt():
                name = ("trigger", *self.relation(node.relation), str(node.trigname))
                self._declare(name, version, keep=bool(node.replace))
            case ast.CreatePolicyStmt():
                self._declare(("policy", *self.relation(node.table), str(node.policy_name)), version)
            case ast.RuleStmt():
                name = ("rule", *self.relation(node.relation), str(node.rulename))
                self._declare(name, version, keep=bool(node.replace))
            case _:
                self._create_by_name(node, version)

    def _create_by_name(self, node: ast.Node, version: int) -> None:
        kind = ""
        names: tuple[str, ...] = ()
        keep = False
        match node:
            case ast.CreateFunctionStmt():
                kind, names, keep = "routine", strings(node.funcname), bool(node.replace)
            case ast.DefineStmt(kind=ObjectType.OBJECT_AGGREGATE):
                kind, names, keep = "routine", strings(node.defnames), bool(node.replace)
            case ast.CreateEnumStmt() | ast.CreateRangeStmt():
                kind, names = "type", strings(node.typeName)
            case ast.CreateDomainStmt():
                kind, names = "type", strings(node.domainname)
            case ast.CompositeTypeStmt():
                kind, names = "type", tuple(each for each in (node.typevar.schemaname, node.typevar.relname) if each)
        if names:
            schema = names[-2] if len(names) > 1 else self.search_path[0]
            self._declare((kind, schema, names[-1]), version, keep=keep)


def dropped(node: ast.DropStmt, objects: DeclaredObjects) -> Iterator[Name]:
    """Yield the objects that a DROP statement names."""
    for item in node.objects or ():
        names = strings(getattr(item, "objname", None) or getattr(item, "names", None) or item)
        kind = node.removeType
        if kind in _ON_TABLES:
            yield (_ON_TABLES[kind], *objects.resolve(names[:-1]), names[-1])
        else:
            yield _named(kind, names, objects)


def renamed(node: ast.RenameStmt, objects: DeclaredObjects) -> Name | None:
    """Return the object that a statement renames."""
    kind = node.renameType
    if kind in {ObjectType.OBJECT_COLUMN, ObjectType.OBJECT_ATTRIBUTE} and node.relation is not None:
        return ("column", *objects.relation(node.relation), str(node.subname))
    if kind in _ON_TABLES and node.relation is not None:
        return (_ON_TABLES[kind], *objects.relation(node.relation), str(node.subname))
    return of_statement(node, kind, objects)


def of_statement(node: Any, kind: ObjectType, objects: DeclaredObjects) -> Name:
    """Return the object of a statement that has `relation`, `object` or `subname`."""
    if getattr(node, "relation", None) is not None:
        return ("relation", *objects.relation(node.relation))
    item = getattr(node, "object", None)
    names = strings(getattr(item, "objname", None) or getattr(item, "names", None) or item)
    return _named(kind, names or (str(getattr(node, "subname", "")),), objects)


def _named(kind: ObjectType, names: Sequence[str], objects: DeclaredObjects) -> Name:
    if kind in _RELATIONS:
        return ("relation", *objects.resolve(names))
    if kind in _ROUTINES:
        return ("routine", *objects.resolve(names, "routine"))
    if kind in {ObjectType.OBJECT_TYPE, ObjectType.OBJECT_DOMAIN}:
        return ("type", *objects.resolve(names, "type"))
    return (kind.name.removeprefix("OBJECT_").lower().replace("_", " "), *names)


def strings(value: Any) -> tuple[str, ...]:
    """Return the texts of a list of names; a single name is a list of one."""
    items = value if isinstance(value, tuple | list) else (value,)
    return tuple(str(each.sval) for each in items if isinstance(each, ast.String))


def column_type(node: ast.TypeName) -> ColumnType:
    """Return the type of a column as written."""
    modifiers = [each.val.ival for each in node.typmods or () if isinstance(getattr(each, "val", None), ast.Integer)]
    return ColumnType(strings(node.names)[-1] + ("[]" if node.arrayBounds else ""), tuple(modifiers))


def view_columns(node: ast.ViewStmt) -> tuple[str, ...] | None:
    """Return the names of a view's columns; None where its text does not have them all."""
    query = None if node.aliases else node.query
    while isinstance(query, ast.SelectStmt) and query.larg is not None:
        query = query.larg
    if not isinstance(query, ast.SelectStmt) or not query.targetList:
        return None
    names = [_target_name(target) for target in query.targetList]
    return None if None in names else tuple(str(name) for name in names)


def _target_name(target: ast.ResTarget) -> str | None:
    value = target.val
    if target.name:
        return str(target.name)
    if isinstance(value, ast.ColumnRef) and isinstance(value.fields[-1], ast.String):
        return str(value.fields[-1].sval)
    return str(value.funcname[-1].sval) if isinstance(value, ast.FuncCall) else None
