"""Determines from a statement's syntax tree which locks it takes and whether it rewrites a table.

The modes are from PostgreSQL's manual, 13.3.1, and from `AlterTableGetLockLevel` in its tablecmds.c. The effects of a
function that the statement calls are unknown here; a rehearsal observes them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import pglast
from pglast import ast
from pglast.enums import AlterTableType, ConstrType, LockClauseStrength, ObjectType

from observatory.database.migrations.statements import Statement

# From the weakest to the strongest. The index is the number in LOCK TABLE's syntax tree minus one.
MODES = (
    *("ACCESS SHARE", "ROW SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE"),
    *("SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE"),
)
(
    ACCESS_SHARE,
    ROW_SHARE,
    ROW_EXCLUSIVE,
    SHARE_UPDATE_EXCLUSIVE,
    SHARE,
    SHARE_ROW_EXCLUSIVE,
    EXCLUSIVE,
    ACCESS_EXCLUSIVE,
) = MODES

# Rows of data: they take the lock of any write, and the syntax tree of 10 MB of them would take gigabytes.
_ROWS = re.compile(r"(?:INSERT\s+INTO|COPY)\s+([\w.\"]+)", re.IGNORECASE)

_ALTERS_WITH_A_WEAK_LOCK = {
    AlterTableType.AT_SetStatistics,
    AlterTableType.AT_SetOptions,
    AlterTableType.AT_ResetOptions,
    AlterTableType.AT_SetRelOptions,
    AlterTableType.AT_ResetRelOptions,
    AlterTableType.AT_ClusterOn,
    AlterTableType.AT_DropCluster,
    AlterTableType.AT_ValidateConstraint,
    AlterTableType.AT_AttachPartition,
}
_ALTERS_OF_TRIGGERS = {
    AlterTableType.AT_EnableTrig,
    AlterTableType.AT_EnableAlwaysTrig,
    AlterTableType.AT_EnableReplicaTrig,
    AlterTableType.AT_EnableTrigAll,
    AlterTableType.AT_EnableTrigUser,
    AlterTableType.AT_DisableTrig,
    AlterTableType.AT_DisableTrigAll,
    AlterTableType.AT_DisableTrigUser,
}
_ALTERS_THAT_REWRITE = {
    AlterTableType.AT_AlterColumnType,
    AlterTableType.AT_SetLogged,
    AlterTableType.AT_SetUnLogged,
    AlterTableType.AT_SetAccessMethod,
}
_DROPS_OF_RELATIONS = {
    *(ObjectType.OBJECT_TABLE, ObjectType.OBJECT_VIEW, ObjectType.OBJECT_MATVIEW, ObjectType.OBJECT_INDEX),
    *(ObjectType.OBJECT_SEQUENCE, ObjectType.OBJECT_FOREIGN_TABLE),
}
_DROPS_OF_PARTS = {ObjectType.OBJECT_TRIGGER, ObjectType.OBJECT_RULE, ObjectType.OBJECT_POLICY}


class Lock(NamedTuple):
    """A lock on a relation: one of `MODES`, and the relation's name, with its schema unless that is `public`."""

    mode: str
    relation: str

    @property
    def strength(self) -> int:
        """The rank of the mode; a stronger lock conflicts with more others."""
        return MODES.index(self.mode)


class StatementEffects(NamedTuple):
    """The locks that a statement takes, and the relations that it rewrites."""

    locks: tuple[Lock, ...] = ()
    rewrites: tuple[str, ...] = ()


def strongest(locks: Sequence[Lock]) -> Lock | None:
    """Return the strongest lock; None when there is none."""
    return max(locks, key=lambda lock: lock.strength, default=None)


def expected_effects(statement: Statement) -> StatementEffects:
    """Return the effects that follow from the text of a statement."""
    if rows := _ROWS.match(statement.sql):
        return _one(ROW_EXCLUSIVE, rows[1].replace('"', "").removeprefix("public."))
    return _of(pglast.parse_sql(statement.sql)[0].stmt)


def _of(node: Any) -> StatementEffects:  # noqa: PLR0911, PLR0912 - a table of cases
    match node:
        case ast.AlterTableStmt():
            return _alter_table(node)
        case ast.CreateStmt():
            return StatementEffects(locks=tuple(_references(node.tableElts or ())))
        case ast.IndexStmt():
            return _one(SHARE_UPDATE_EXCLUSIVE if node.concurrent else SHARE, _name(node.relation))
        case ast.DropStmt():
            return _drop(node)
        case ast.TruncateStmt():
            return StatementEffects(locks=tuple(Lock(ACCESS_EXCLUSIVE, _name(each)) for each in node.relations))
        case ast.VacuumStmt():
            return _vacuum(node)
        case ast.ClusterStmt(relation=ast.RangeVar() as relation):
            return _one(ACCESS_EXCLUSIVE, _name(relation), rewrites=True)
        case ast.ReindexStmt(relation=ast.RangeVar() as relation):
            concurrently = any(option.defname == "concurrently" for option in node.params or ())
            return _one(SHARE_UPDATE_EXCLUSIVE if concurrently else SHARE, _name(relation))
        case ast.RefreshMatViewStmt():
            return _one(EXCLUSIVE if node.concurrent else ACCESS_EXCLUSIVE, _name(node.relation), rewrites=True)
        case ast.CreateTrigStmt():
            return _one(SHARE_ROW_EXCLUSIVE, _name(node.relation))
        case (
            ast.RuleStmt()
            | ast.RenameStmt(relation=ast.RangeVar())
            | ast.AlterObjectSchemaStmt(relation=ast.RangeVar())
        ):
            return _one(ACCESS_EXCLUSIVE, _name(node.relation))
        case ast.CreatePolicyStmt() | ast.AlterPolicyStmt():
            return _one(ACCESS_EXCLUSIVE, _name(node.table))
        case ast.InsertStmt() | ast.UpdateStmt() | ast.DeleteStmt() | ast.MergeStmt():
            return _one(ROW_EXCLUSIVE, _name(node.relation))
        case ast.LockStmt():
            return StatementEffects(locks=tuple(Lock(MODES[node.mode - 1], _name(each)) for each in node.relations))
        case ast.SelectStmt():
            mode = ROW_SHARE if _locks_rows(node) else ACCESS_SHARE
            tables = [each for each in node.fromClause or () if isinstance(each, ast.RangeVar)]
            return StatementEffects(locks=tuple(Lock(mode, _name(each)) for each in tables))
        case _:
            return StatementEffects()


def _alter_table(node: Any) -> StatementEffects:
    relation = _name(node.relation)
    locks = [Lock(_alter_mode(command), relation) for command in node.cmds]
    referenced = (lock for command in node.cmds if command.def_ is not None for lock in _references([command.def_]))
    rewrites = any(_rewrites(command) for command in node.cmds)
    return StatementEffects(locks=(*locks, *referenced), rewrites=(relation,) if rewrites else ())


def _alter_mode(command: Any) -> str:
    if command.subtype in _ALTERS_WITH_A_WEAK_LOCK:
        return SHARE_UPDATE_EXCLUSIVE
    is_constraint = command.subtype == AlterTableType.AT_AddConstraint
    if is_constraint and command.def_.contype == ConstrType.CONSTR_FOREIGN:
        return SHARE_ROW_EXCLUSIVE
    return SHARE_ROW_EXCLUSIVE if command.subtype in _ALTERS_OF_TRIGGERS else ACCESS_EXCLUSIVE


def _rewrites(command: Any) -> bool:
    """Return whether the command rewrites every row; a constant default does not, since PostgreSQL 11."""
    if command.subtype != AlterTableType.AT_AddColumn:
        return command.subtype in _ALTERS_THAT_REWRITE
    constraints = {each.contype: each for each in command.def_.constraints or ()}
    default = constraints.get(ConstrType.CONSTR_DEFAULT)
    stored = {ConstrType.CONSTR_GENERATED, ConstrType.CONSTR_IDENTITY} & set(constraints)
    return bool(stored) or (default is not None and isinstance(default.raw_expr, ast.FuncCall))


def _references(elements: Sequence[Any]) -> list[Lock]:
    """Return the locks on the tables that foreign keys refer to."""
    nested = [each for element in elements for each in getattr(element, "constraints", None) or ()]
    keys = [each for each in (*elements, *nested) if getattr(each, "contype", None) == ConstrType.CONSTR_FOREIGN]
    return [Lock(SHARE_ROW_EXCLUSIVE, _name(key.pktable)) for key in keys]


def _drop(node: Any) -> StatementEffects:
    mode = SHARE_UPDATE_EXCLUSIVE if node.concurrent else ACCESS_EXCLUSIVE
    if node.removeType in _DROPS_OF_RELATIONS:
        names = [".".join(part.sval for part in parts).removeprefix("public.") for parts in node.objects]
    elif node.removeType in _DROPS_OF_PARTS:
        names = [".".join(part.sval for part in parts[:-1]).removeprefix("public.") for parts in node.objects]
    else:
        names = []
    return StatementEffects(locks=tuple(Lock(mode, name) for name in names))


def _vacuum(node: Any) -> StatementEffects:
    full = any(option.defname == "full" for option in node.options or ())
    names = [_name(each.relation) for each in node.rels or () if each.relation]
    mode = ACCESS_EXCLUSIVE if full else SHARE_UPDATE_EXCLUSIVE
    return StatementEffects(locks=tuple(Lock(mode, name) for name in names), rewrites=tuple(names) if full else ())


def _locks_rows(node: Any) -> bool:
    return any(clause.strength != LockClauseStrength.LCS_NONE for clause in node.lockingClause or ())


def _one(mode: str, relation: str, *, rewrites: bool = False) -> StatementEffects:
    return StatementEffects(locks=(Lock(mode, relation),), rewrites=(relation,) if rewrites else ())


def _name(relation: Any) -> str:
    return ".".join(filter(None, (relation.schemaname, relation.relname))).removeprefix("public.")
