"""The rules that squawk lacks: TimescaleDB's, its editions', and those of this engine.

Each rule gets one statement's tree and what earlier statements made, and yields places (offsets in the statement)
with what is wrong and what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pglast import ast
from pglast.enums import AlterTableType, ConstrType

from observatory.database.lint.declared_schema import Key, Schema, function_name, is_serial, key_of, text_of, walk
from observatory.database.lint.findings import Severity
from observatory.database.lint.integer_overflow import overflows
from observatory.database.migrations.files import Edition

# https://github.com/timescale/timescaledb/blob/2.19.3/src/cross_module_fn.c: what the Apache edition hands to a module
# that it does not have.
COMMUNITY_FUNCTIONS = {
    *("add_retention_policy", "remove_retention_policy", "add_compression_policy", "remove_compression_policy"),
    *("add_columnstore_policy", "remove_columnstore_policy", "add_continuous_aggregate_policy"),
    *("remove_continuous_aggregate_policy", "add_reorder_policy", "remove_reorder_policy"),
    *("add_policies", "remove_policies", "remove_all_policies", "alter_policies", "show_policies"),
    *("add_job", "delete_job", "run_job", "alter_job", "refresh_continuous_aggregate", "cagg_migrate"),
    *("compress_chunk", "decompress_chunk", "recompress_chunk", "convert_to_columnstore", "convert_to_rowstore"),
    *("reorder_chunk", "move_chunk", "merge_chunks", "time_bucket_gapfill", "locf", "interpolate"),
}
_IDEMPOTENT = {"if_not_exists", "if_exists"}
_OWN_OPTIONS = {"timescaledb", "tsdb"}
_NEED_HEADER = "Put it into a file of its own whose first line is '-- transaction: false'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a rule may know beside the statement.

    Attributes:
        schema: what earlier statements made.
        version: the file's number.
        variant: the edition that the file is for; None is for all.
        transactional: the file runs in one transaction.
        live: the service may be running while the file runs.
    """

    schema: Schema
    version: int
    variant: Edition | None
    transactional: bool
    live: bool


Problems = Iterator[tuple[int, str]]
Check = Callable[[ast.Node, Setting], Problems]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A rule of ours: the name that a header may ignore it by, and its check."""

    name: str
    check: Check
    severity: Severity = "error"


def _concurrently_on_hypertable(node: ast.Node, setting: Setting) -> Problems:
    if isinstance(node, ast.IndexStmt) and node.concurrent and key_of(node.relation) in setting.schema.hypertables:
        remedy = "Build it WITH (timescaledb.transaction_per_chunk)"
        yield 0, f"TimescaleDB refuses CONCURRENTLY on the hypertable {node.relation.relname}. {remedy}"


def _index_blocks_hypertable(node: ast.Node, setting: Setting) -> Problems:
    if not isinstance(node, ast.IndexStmt) or node.concurrent or not setting.live or _is_per_chunk(node):
        return
    key = key_of(node.relation)
    if key in setting.schema.hypertables and setting.schema.made_by.get(key) != setting.version:
        remedy = "Build it WITH (timescaledb.transaction_per_chunk), in a file with '-- transaction: false'"
        yield 0, f"no row can be written to {key[1]} until the index of every chunk is built. {remedy}"


def _needs_no_transaction(node: ast.Node, setting: Setting) -> Problems:
    what = _outside_transactions(node)
    if what and setting.transactional:
        yield 0, f"{what} cannot run inside a transaction. {_NEED_HEADER}"


def _outside_transactions(node: ast.Node) -> str | None:
    what = None
    match node:
        case ast.IndexStmt(concurrent=True) | ast.DropStmt(concurrent=True):
            what = "CONCURRENTLY"
        case ast.ReindexStmt(params=parameters) if any(option.defname == "concurrently" for option in parameters or ()):
            what = "CONCURRENTLY"
        case ast.IndexStmt() if _is_per_chunk(node):
            what = "timescaledb.transaction_per_chunk"
        case ast.CreateTableAsStmt(into=into) if _own_options(into.options) and not into.skipData:
            what = "a continuous aggregate WITH DATA"
        case ast.CallStmt(funccall=call) if function_name(call) == "refresh_continuous_aggregate":
            what = "refresh_continuous_aggregate"
        case ast.VacuumStmt(is_vacuumcmd=True):
            what = "VACUUM"
        case ast.AlterSystemStmt():
            what = "ALTER SYSTEM"
    return what


def _is_per_chunk(node: ast.IndexStmt) -> bool:
    return any(option.defname == "transaction_per_chunk" for option in _own_options(node.options))


def _integer_overflow(node: ast.Node, setting: Setting) -> Problems:
    yield from overflows(node, setting.schema)


def _policy_without_if_not_exists(node: ast.Node, _setting: Setting) -> Problems:
    for call in _calls(node):
        name = function_name(call)
        adds = name.startswith("add_") and (name.endswith("_policy") or name == "add_policies")
        removes = name.startswith("remove_") and name.endswith("_policy")
        if adds or removes:
            wanted = "if_not_exists" if adds else "if_exists"
            if not any(_is_true(argument, wanted) for argument in call.args or ()):
                yield call.location, f"{name} fails where it ran before. Add {wanted} => true"


def _is_true(argument: Any, name: str) -> bool:
    if not isinstance(argument, ast.NamedArgExpr) or argument.name != name:
        return False
    value = argument.arg
    if isinstance(value, ast.A_Const) and isinstance(value.val, ast.Boolean):
        return bool(value.val.boolval)
    return (text_of(value) or "") in {"t", "true", "on", "yes", "1"}


def _volatile_default_on_hypertable(node: ast.Node, setting: Setting) -> Problems:
    for key, column in _defined_columns(node, setting.schema):
        for place, function in _volatile_defaults(column, setting.schema.volatile):
            consequence = (
                "each row that is there is rewritten under a lock that stops reads too"
                if isinstance(node, ast.AlterTableStmt)
                else "a row that is sent twice is another row each time"
            )
            remedy = "Add the column without a default and let the writer give the value"
            yield place, f"{function} as default on the hypertable {key[1]}: {consequence}. {remedy}"


def _defined_columns(node: ast.Node, schema: Schema) -> Iterator[tuple[Key, ast.ColumnDef]]:
    """Columns that a statement adds to a hypertable, or to a table that the same set makes one."""
    if isinstance(node, ast.CreateStmt):
        columns = [element for element in node.tableElts or () if isinstance(element, ast.ColumnDef)]
    elif isinstance(node, ast.AlterTableStmt):
        adding = (AlterTableType.AT_AddColumn,)
        columns = [command.def_ for command in node.cmds or () if command.subtype in adding]
    else:
        return
    if (key := key_of(node.relation)) in schema.future_hypertables:
        yield from ((key, column) for column in columns)


def _volatile_defaults(column: ast.ColumnDef, volatile: set[str]) -> Problems:
    if is_serial(column):
        yield column.location, "a sequence"
    for constraint in column.constraints or ():
        if constraint.contype == ConstrType.CONSTR_DEFAULT:
            calls = (call for call in _calls(constraint.raw_expr) if function_name(call) in volatile)
            yield from ((call.location, f"{function_name(call)}()") for call in calls)


def _community_feature(node: ast.Node, setting: Setting) -> Problems:
    if setting.variant == "community":
        return
    remedy = "Use it in a file NNN_name.community.sql, and say in NNN_name.apache.sql what stands in for it"
    for place, feature in _community_features(node):
        yield place, f"{feature} is refused by TimescaleDB's Apache edition. {remedy}"


def _community_features(node: ast.Node) -> Problems:
    for call in _calls(node):
        if function_name(call) in COMMUNITY_FUNCTIONS:
            yield call.location, function_name(call)
    if isinstance(node, ast.CreateTableAsStmt) and _own_options(node.into.options):
        yield 0, "a continuous aggregate"
    if isinstance(node, ast.AlterTableStmt):
        for command in node.cmds or ():
            if command.subtype == AlterTableType.AT_SetRelOptions and (options := _own_options(command.def_)):
                yield options[0].location, f"timescaledb.{options[0].defname}"


def _calls(node: Any) -> Iterator[ast.FuncCall]:
    return (call for call in walk(node) if isinstance(call, ast.FuncCall))


def _own_options(options: Any) -> list[ast.DefElem]:
    """Those of a statement's options that are TimescaleDB's."""
    return [option for option in options or () if option.defnamespace in _OWN_OPTIONS]


RULES = (
    Rule(name="concurrently-on-hypertable", check=_concurrently_on_hypertable),
    Rule(name="index-blocks-hypertable", check=_index_blocks_hypertable, severity="warning"),
    Rule(name="needs-no-transaction", check=_needs_no_transaction),
    Rule(name="integer-overflow", check=_integer_overflow),
    Rule(name="policy-without-if-not-exists", check=_policy_without_if_not_exists),
    Rule(name="volatile-default-on-hypertable", check=_volatile_default_on_hypertable),
    Rule(name="community-feature", check=_community_feature),
)
