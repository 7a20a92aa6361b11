"""Finds statements that take from a release what it needs: they remove, rename or narrow what exists.

Decides by syntax trees and by what earlier migrations declare, without a database. What `contracts` yields is certain;
what `may_refuse` yields are conditions that rows of older releases may violate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pglast import ast
from pglast.enums import AlterTableType, ConstrType, DropBehavior, ObjectType, RoleSpecType

from observatory.database.lint.declared_objects import (
    ColumnType,
    DeclaredObjects,
    Name,
    column_type,
    dropped,
    of_statement,
    renamed,
    strings,
    view_columns,
)
from observatory.database.lint.declared_schema import Key, walk
from observatory.database.lint.inner_statements import Routine


class Change(NamedTuple):
    """A change of an object.

    Attributes:
        place: offset in the statement.
        what: `drops the column public.users.email`.
        name: of the object.
    """

    place: int
    what: str
    name: Name


_KEY_CONSTRAINTS = {ConstrType.CONSTR_PRIMARY, ConstrType.CONSTR_UNIQUE, ConstrType.CONSTR_EXCLUSION}
_CONDITIONS = _KEY_CONSTRAINTS | {ConstrType.CONSTR_CHECK, ConstrType.CONSTR_FOREIGN, ConstrType.CONSTR_NOTNULL}
_FILLED_BY_ITSELF = {ConstrType.CONSTR_DEFAULT, ConstrType.CONSTR_IDENTITY, ConstrType.CONSTR_GENERATED}
_SERIALS = {"smallserial", "serial2", "serial", "serial4", "bigserial", "serial8"}
_WITHOUT_LENGTH = {"varchar": "text", "text": "varchar"}
_WIDENS = {"varchar", "varbit", "numeric", "timestamp", "timestamptz", "time", "timetz"}  # without a rewrite
_STATISTICS = {ObjectType.OBJECT_STATISTIC_EXT}
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_RAISES = re.compile(r"\bassert\b|\braise\b(?!\s+(?:notice|warning|info|log|debug)\b)", re.IGNORECASE)
_NO_ROW = re.compile(r"\breturn\s+null\b", re.IGNORECASE)
# Actions of ALTER TABLE on the whole table.
_ACTIONS = {
    AlterTableType.AT_ChangeOwner: "changes the owner of",
    AlterTableType.AT_EnableRowSecurity: "hides rows by row level security of",
    AlterTableType.AT_ForceRowSecurity: "hides rows by row level security of",
    AlterTableType.AT_DisableTrig: "disables a trigger of",
    AlterTableType.AT_DisableTrigAll: "disables the triggers of",
    AlterTableType.AT_DisableTrigUser: "disables the triggers of",
    AlterTableType.AT_DisableRule: "disables a rule of",
    AlterTableType.AT_DropInherit: "takes its rows from the parent of",
    AlterTableType.AT_DetachPartition: "takes the rows of a partition from",
    AlterTableType.AT_SetUnLogged: "loses in a crash, and on every standby, the rows of",
}
_COLUMN_ACTIONS = {
    AlterTableType.AT_DropColumn: "drops",
    AlterTableType.AT_SetNotNull: "sets NOT NULL on",
    AlterTableType.AT_DropIdentity: "stops the numbers of",
    AlterTableType.AT_DropExpression: "stops the computed values of",
    AlterTableType.AT_SetExpression: "rewrites the computed values of",
}


def contracts(node: ast.Node, objects: DeclaredObjects) -> Iterator[Change]:
    """Yield the changes of a statement that break a release which needs the object."""
    match node:
        case ast.DropStmt():
            yield from _drops(node, objects)
        case ast.RenameStmt():
            name = renamed(node, objects)
            if name:
                yield Change(0, f"renames {described(name)}", name)
        case ast.AlterObjectSchemaStmt():
            name = of_statement(node, node.objectType, objects)
            yield Change(0, f"moves {described(name)} to another schema", name)
        case ast.AlterOwnerStmt():
            name = of_statement(node, node.objectType, objects)
            yield Change(0, f"changes the owner of {described(name)}", name)
        case ast.AlterTableStmt():
            yield from _alters(node, objects)
        case ast.AlterDomainStmt() if node.subtype == "O" or (node.subtype == "T" and node.def_ is None):
            name = ("type", *objects.resolve(strings(node.typeName), "type"))
            yield Change(0, f"narrows {described(name)}", name)
        case ast.AlterEnumStmt() if node.oldVal:
            name = ("type", *objects.resolve(strings(node.typeName), "type"))
            yield Change(0, f"renames a value of {described(name)}", name)
        case ast.ViewStmt() if node.replace:
            yield from _replaces_view(node, objects)
        case ast.GrantStmt() | ast.AlterDefaultPrivilegesStmt():
            yield from _revokes(node, objects)


def may_refuse(node: ast.Node, objects: DeclaredObjects, routines: Mapping[str, Sequence[Routine]]) -> Iterator[Change]:
    """Yield the conditions that a statement puts on rows of an existing table."""
    match node:
        case ast.AlterTableStmt(objtype=ObjectType.OBJECT_TABLE):
            key = objects.relation(node.relation)
            for command in node.cmds or ():
                added = command.def_ if command.subtype == AlterTableType.AT_AddConstraint else None
                if added is not None and added.contype in _CONDITIONS:
                    what = f"adds {added.contype.name.removeprefix('CONSTR_')} to {described(('relation', *key))}"
                    yield Change(max(added.location or 0, 0), what, ("relation", *key))
                elif command.subtype == AlterTableType.AT_AddColumn and _added_column_may_refuse(command.def_):
                    what = f"adds the column {command.def_.colname} with a condition to"
                    yield Change(
                        max(command.def_.location or 0, 0),
                        f"{what} {described(('relation', *key))}",
                        ("relation", *key),
                    )
                elif command.subtype == AlterTableType.AT_AttachPartition:
                    name = ("relation", *objects.relation(command.def_.name))
                    yield Change(0, f"limits the rows of {described(name)} to a partition", name)
        case ast.AlterDomainStmt(subtype="C"):
            name = ("type", *objects.resolve(strings(node.typeName), "type"))
            yield Change(0, f"adds a condition to {described(name)}", name)
        case ast.IndexStmt(unique=True):
            name = ("relation", *objects.relation(node.relation))
            yield Change(0, f"adds a unique index to {described(name)}", name)
        case ast.CreateTrigStmt() if _trigger_may_refuse(node, routines):
            name = ("relation", *objects.relation(node.relation))
            yield Change(0, f"adds a trigger that may refuse or leave out rows to {described(name)}", name)
        case ast.RuleStmt(instead=True):
            name = ("relation", *objects.relation(node.relation))
            yield Change(0, f"replaces statements on {described(name)} by a rule", name)


def cascades(node: ast.Node) -> bool:
    """Return whether a statement also drops what depends on the named objects."""
    if isinstance(node, ast.AlterTableStmt):
        drops = {AlterTableType.AT_DropColumn, AlterTableType.AT_DropConstraint}
        commands = [command for command in node.cmds or () if command.subtype in drops]
        return any(command.behavior == DropBehavior.DROP_CASCADE for command in commands)
    return isinstance(node, ast.DropStmt) and node.behavior == DropBehavior.DROP_CASCADE


def described(name: Name) -> str:
    """Return kind and name of an object, as a message names it."""
    return f"{name[0]} {'.'.join(name[1:])}".rstrip()


def _trigger_may_refuse(node: ast.CreateTrigStmt, routines: Mapping[str, Sequence[Routine]]) -> bool:
    """Return whether the function of a trigger raises an error or returns no row, or cannot be read."""
    bodies = routines.get(strings(node.funcname)[-1], ())
    is_first = node.timing != 0 and node.row  # BEFORE or INSTEAD OF, where NULL leaves out the row
    return not bodies or any(
        body.language != "plpgsql"
        or body.text is None
        or _RAISES.search(_COMMENT.sub("", body.text)) is not None
        or (is_first and _NO_ROW.search(_COMMENT.sub("", body.text)) is not None)
        for body in bodies
    )


def _drops(node: ast.DropStmt, objects: DeclaredObjects) -> Iterator[Change]:
    if node.removeType in _STATISTICS:
        return
    for name in dropped(node, objects):
        is_index = node.removeType == ObjectType.OBJECT_INDEX
        # No query names an index, except for ON CONFLICT, which needs a unique one.
        if not (is_index and objects.unique_indexes.get((name[1], name[2])) is False):
            yield Change(0, f"drops {described(name)}", name)


def _alters(node: ast.AlterTableStmt, objects: DeclaredObjects) -> Iterator[Change]:
    key = objects.relation(node.relation)
    table: Name = ("type" if node.objtype == ObjectType.OBJECT_TYPE else "relation", *key)
    for command in node.cmds or ():
        kind = command.subtype
        column: Name = ("column", *key, str(command.name))
        if kind in _COLUMN_ACTIONS:
            yield Change(0, f"{_COLUMN_ACTIONS[kind]} {described(column)}", column)
        elif kind in _ACTIONS:
            yield Change(0, f"{_ACTIONS[kind]} {described(table)}", table)
        elif _refuses_numbers(command):
            yield Change(0, f"refuses given numbers in {described(column)}", column)
        elif kind == AlterTableType.AT_ColumnDefault and (command.def_ is None or _is_null(command.def_)):
            yield Change(0, f"drops the default of {described(column)}", column)
        elif kind == AlterTableType.AT_AlterColumnType:
            if not _widens(objects.types.get(column), command.def_):
                what = "rewrites or narrows the type of"
                yield Change(max(command.def_.location or 0, 0), f"{what} {described(column)}", column)
        elif kind == AlterTableType.AT_DropConstraint:
            name = ("constraint", *key, str(command.name))
            if objects.constraints.get(name, ConstrType.CONSTR_UNIQUE) in _KEY_CONSTRAINTS:
                yield Change(0, f"drops {described(name)}", name)
        elif kind == AlterTableType.AT_AddColumn and _must_be_given(command.def_):
            what = f"adds the column {command.def_.colname}, NOT NULL and without a default, to"
            yield Change(max(command.def_.location or 0, 0), f"{what} {described(table)}", table)


def _refuses_numbers(command: ast.AlterTableCmd) -> bool:
    """Return whether a column becomes GENERATED ALWAYS AS IDENTITY."""
    always = ord("a")
    if command.subtype == AlterTableType.AT_AddIdentity:
        return bool(command.def_.generated_when in {"a", always})
    options = command.def_ if command.subtype == AlterTableType.AT_SetIdentity else ()
    return any(option.defname == "generated" and option.arg.ival == always for option in options)


def _must_be_given(column: ast.ColumnDef) -> bool:
    """Return whether an INSERT without this column fails."""
    kinds = {each.contype for each in column.constraints or () if not _is_null(each.raw_expr)}
    if column.typeName is not None and column_type(column.typeName).name in _SERIALS:
        return False
    return bool(kinds & {ConstrType.CONSTR_NOTNULL, ConstrType.CONSTR_PRIMARY}) and not kinds & _FILLED_BY_ITSELF


def _is_null(value: Any) -> bool:
    """Return whether an expression is NULL, also with a cast."""
    while isinstance(value, ast.TypeCast):
        value = value.arg
    return isinstance(value, ast.A_Const) and bool(value.isnull)


def _added_column_may_refuse(column: ast.ColumnDef) -> bool:
    """Return whether rows without a value for this column may violate one of its conditions."""
    constraints = column.constraints or ()
    filled = any(each.contype == ConstrType.CONSTR_DEFAULT and not _is_null(each.raw_expr) for each in constraints)
    for each in constraints:
        if each.contype in _KEY_CONSTRAINTS | {ConstrType.CONSTR_FOREIGN} and filled:
            return True
        if each.contype == ConstrType.CONSTR_CHECK:
            used = {strings(ref.fields)[-1:] for ref in walk(each.raw_expr) if isinstance(ref, ast.ColumnRef)}
            if used - {(column.colname,)}:
                return True
    return False


def _widens(old: ColumnType | None, column: Any) -> bool:
    """Return whether every value fits the new type as it is stored, so that nothing is rewritten or refused."""
    if old is None or column.raw_default is not None:  # USING
        return False
    new = column_type(column.typeName)
    if old == new or (_WITHOUT_LENGTH.get(old.name) == new.name and not new.modifiers):
        return True
    if old.name != new.name or old.name not in _WIDENS:
        return False
    if not new.modifiers:
        return True
    if not old.modifiers or old.modifiers[1:] != new.modifiers[1:]:
        return False
    return new.modifiers[0] >= old.modifiers[0]


def _replaces_view(node: ast.ViewStmt, objects: DeclaredObjects) -> Iterator[Change]:
    key: Key = objects.relation(node.view)
    old, new = objects.views.get(key), view_columns(node)
    if old and new is not None and new[: len(old)] != old:
        yield Change(0, f"removes or renames columns of {described(('relation', *key))}", ("relation", *key))


def _revokes(node: Any, objects: DeclaredObjects) -> Iterator[Change]:
    grant = node.action if isinstance(node, ast.AlterDefaultPrivilegesStmt) else node
    # PUBLIC has no privileges here, so nothing is taken from a release.
    named = [role for role in grant.grantees or () if role.roletype != RoleSpecType.ROLESPEC_PUBLIC]
    if grant.is_grant or not named:
        return
    for item in grant.objects or (None,):
        if isinstance(item, ast.RangeVar):
            name: Name = ("relation", *objects.relation(item))
        elif isinstance(item, ast.ObjectWithArgs):
            name = ("routine", *objects.resolve(strings(item.objname), "routine"))
        else:
            name = ("schema", *strings(item))
        yield Change(0, f"revokes privileges on {described(name)}", name)
