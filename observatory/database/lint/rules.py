"""Rules that squawk lacks: for TimescaleDB, its editions, and the way migrations are applied.

Each rule receives the syntax tree of one statement and the schema that earlier statements declare. It yields the offset
of each problem in the statement, and a message with the problem and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pglast import ast
from pglast.enums import AlterTableType, ConstrType

from observatory.database.lint.contracts import cascades, contracts, may_refuse
from observatory.database.lint.declared_objects import DeclaredObjects, Name
from observatory.database.lint.declared_schema import (
    DeclaredSchema,
    Key,
    function_name,
    is_serial,
    key_of,
    text_of,
    walk,
)
from observatory.database.lint.engine_rules import attacks
from observatory.database.lint.findings import Severity
from observatory.database.lint.grant_rules import wrong_grants
from observatory.database.lint.inner_statements import Routine
from observatory.database.lint.integer_overflow import overflows
from observatory.database.lint.live_rules import (
    blocking_rewrites,
    fills_added_column,
    removed_rows,
    unsafe_definer,
    without_effect,
)
from observatory.database.migrations.files import Edition

# https://github.com/timescale/timescaledb/blob/2.19.3/src/cross_module_fn.c: the functions that the Apache
# edition forwards to a module that it lacks.
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
_TIMESCALEDB_NAMESPACES = {"timescaledb", "tsdb"}
_NEED_HEADER = "Put it into a file of its own whose first line is '-- transaction: false'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """The context of a statement.

    Attributes:
        schema: declared by earlier statements.
        version: the file's number.
        variant: the edition that the file is for; None is for all.
        transactional: the file runs in one transaction.
        live: the service may run at the same time.
        used: number of the last migration whose objects a release in use may need; None: no release is known.
        objects: declared by earlier statements.
        contract: the file declares that it removes what older releases need.
        altered: tables of earlier migrations to which the file has added a column.
        routines: the functions that earlier statements define, by name.
        nodes: the statement's tree, node by node.
    """

    schema: DeclaredSchema
    version: int
    variant: Edition | None
    transactional: bool
    live: bool
    used: int | None
    objects: DeclaredObjects
    contract: bool
    altered: set[Key]
    routines: Mapping[str, Sequence[Routine]]
    nodes: tuple[ast.Node, ...] = ()

    def in_use(self, name: Name) -> bool:
        """Return whether a release may need an object; without a known release, whether it is older than the file."""
        return self.objects.created(name) <= (self.version - 1 if self.used is None else self.used)


Problems = Iterator[tuple[int, str]]
Check = Callable[[ast.Node, Context], Problems]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A rule.

    Attributes:
        name: for the header that ignores it.
        check: yields the problems in a statement.
        severity: of its findings.
        by_release: the problem is one for a release that runs; without a known release it is a warning.
        ignorable: a header with a reason ignores it, or without a known release where it is `by_release`.
        inside: checks also the statements of DO blocks and of functions that the file calls.
    """

    name: str
    check: Check
    severity: Severity = "error"
    by_release: bool = False
    ignorable: bool = True
    inside: bool = True


def _concurrently_on_hypertable(node: ast.Node, context: Context) -> Problems:
    if isinstance(node, ast.IndexStmt) and node.concurrent and key_of(node.relation) in context.schema.hypertables:
        remedy = "Build it WITH (timescaledb.transaction_per_chunk)"
        yield 0, f"TimescaleDB rejects CONCURRENTLY on the hypertable {node.relation.relname}. {remedy}"


def _index_blocks_hypertable(node: ast.Node, context: Context) -> Problems:
    if not isinstance(node, ast.IndexStmt) or node.concurrent or not context.live or _is_per_chunk(node):
        return
    key = key_of(node.relation)
    if key in context.schema.hypertables and context.schema.created_by.get(key) != context.version:
        remedy = "Build it WITH (timescaledb.transaction_per_chunk), in a file with '-- transaction: false'"
        yield 0, f"writes to {key[1]} are blocked until the index of every chunk is built. {remedy}"


def _needs_no_transaction(node: ast.Node, context: Context) -> Problems:
    what = _feature_outside_transactions(node)
    if what and context.transactional:
        yield 0, f"{what} cannot run inside a transaction. {_NEED_HEADER}"


def _feature_outside_transactions(node: ast.Node) -> str | None:
    what = None
    match node:
        case ast.IndexStmt(concurrent=True) | ast.DropStmt(concurrent=True):
            what = "CONCURRENTLY"
        case ast.ReindexStmt(params=parameters) if any(option.defname == "concurrently" for option in parameters or ()):
            what = "CONCURRENTLY"
        case ast.IndexStmt() if _is_per_chunk(node):
            what = "timescaledb.transaction_per_chunk"
        case ast.CreateTableAsStmt(into=into) if _timescaledb_options(into.options) and not into.skipData:
            what = "a continuous aggregate WITH DATA"
        case ast.CallStmt(funccall=call) if function_name(call) == "refresh_continuous_aggregate":
            what = "refresh_continuous_aggregate"
        case ast.VacuumStmt(is_vacuumcmd=True):
            what = "VACUUM"
        case ast.AlterSystemStmt():
            what = "ALTER SYSTEM"
    return what


def _is_per_chunk(node: ast.IndexStmt) -> bool:
    return any(option.defname == "transaction_per_chunk" for option in _timescaledb_options(node.options))


def _integer_overflow(node: ast.Node, context: Context) -> Problems:
    yield from overflows(node, context.nodes, context.schema)


def _policy_without_if_not_exists(_node: ast.Node, context: Context) -> Problems:
    for call in _calls_in(context.nodes):
        name = function_name(call)
        adds = name.startswith("add_") and (name.endswith("_policy") or name == "add_policies")
        removes = name.startswith("remove_") and name.endswith("_policy")
        if adds or removes:
            option = "if_not_exists" if adds else "if_exists"
            if not any(_is_true(argument, option) for argument in call.args or ()):
                yield call.location, f"{name} fails when it runs a second time. Add {option} => true"


def _is_true(argument: Any, name: str) -> bool:
    if not isinstance(argument, ast.NamedArgExpr) or argument.name != name:
        return False
    value = argument.arg
    if isinstance(value, ast.A_Const) and isinstance(value.val, ast.Boolean):
        return bool(value.val.boolval)
    return (text_of(value) or "") in {"t", "true", "on", "yes", "1"}


def _volatile_default_on_hypertable(node: ast.Node, context: Context) -> Problems:
    for key, column in _defined_columns(node, context.schema):
        for place, function in _volatile_defaults(column, context.schema.volatile):
            consequence = (
                "it rewrites every row under a lock that also blocks reads"
                if isinstance(node, ast.AlterTableStmt)
                else "a row that a client sends twice is stored twice"
            )
            remedy = "Remove the default and let the client set the value"
            yield place, f"{function} as a default on the hypertable {key[1]}: {consequence}. {remedy}"


def _defined_columns(node: ast.Node, schema: DeclaredSchema) -> Iterator[tuple[Key, ast.ColumnDef]]:
    """Yield columns that a statement adds to a hypertable, or to a table that a later file turns into one."""
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


def _community_feature(node: ast.Node, context: Context) -> Problems:
    if context.variant == "community":
        return
    remedy = "Use it in a file NNN_name.community.sql, and write the replacement in NNN_name.apache.sql"
    for place, feature in _community_features(node, context.nodes):
        yield place, f"TimescaleDB's Apache edition rejects {feature}. {remedy}"


def _community_features(node: ast.Node, nodes: Iterable[ast.Node]) -> Problems:
    for call in _calls_in(nodes):
        if function_name(call) in COMMUNITY_FUNCTIONS:
            yield call.location, function_name(call)
    if isinstance(node, ast.CreateTableAsStmt) and _timescaledb_options(node.into.options):
        yield 0, "a continuous aggregate"
    if isinstance(node, ast.AlterTableStmt):
        for command in node.cmds or ():
            if command.subtype == AlterTableType.AT_SetRelOptions and (options := _timescaledb_options(command.def_)):
                yield options[0].location, f"timescaledb.{options[0].defname}"


def _calls(node: Any) -> Iterator[ast.FuncCall]:
    return _calls_in(walk(node))


def _calls_in(nodes: Iterable[ast.Node]) -> Iterator[ast.FuncCall]:
    return (each for each in nodes if isinstance(each, ast.FuncCall))


def _timescaledb_options(options: Any) -> list[ast.DefElem]:
    """Return the options of a statement that belong to TimescaleDB."""
    return [option for option in options or () if option.defnamespace in _TIMESCALEDB_NAMESPACES]


def _contract_without_header(node: ast.Node, context: Context) -> Problems:
    if context.contract:
        return
    for change in contracts(node, context.objects):
        if context.in_use(change.name):
            remedy = (
                "Write '-- phase: contract' above the first statement: the file is then applied when no release in "
                "use needs it. Or add what is new and keep what is old"
            )
            yield change.place, f"{change.what}, which a release in use may need. {remedy}"


def _may_refuse_writes(node: ast.Node, context: Context) -> Problems:
    if context.contract:
        return
    for change in may_refuse(node, context.objects, context.routines):
        if context.in_use(change.name):
            remedy = (
                "Check in the code of every release in use that none is violated, and write that into "
                "'-- lint-ignore may-refuse-writes: REASON'"
            )
            yield change.place, f"{change.what}: writes of a release in use may violate it. {remedy}"


def _cascade(node: ast.Node, context: Context) -> Problems:
    if context.contract or not cascades(node):
        return
    if any(context.objects.created(change.name) != context.version for change in contracts(node, context.objects)):
        yield 0, "CASCADE also drops what depends on the object and is not named here. Name each object"


def _attacks_engine(node: ast.Node, context: Context) -> Problems:
    yield from attacks(node, context.nodes, context.objects)


def _grant_not_allowed(node: ast.Node, context: Context) -> Problems:
    yield from wrong_grants(node, context.objects)


def _blocking_rewrite(node: ast.Node, context: Context) -> Problems:
    if context.live:
        yield from blocking_rewrites(node)


def _removes_rows(node: ast.Node, context: Context) -> Problems:
    yield from removed_rows(node, context.nodes, context.objects, context.version)


def _update_after_add_column(_node: ast.Node, context: Context) -> Problems:
    if context.live and context.transactional and context.altered:
        yield from fills_added_column(context.nodes, context.objects, context.altered)


def _definer_without_search_path(node: ast.Node, _context: Context) -> Problems:
    yield from unsafe_definer(node)


def _no_effect(node: ast.Node, context: Context) -> Problems:
    yield from without_effect(node, transactional=context.transactional)


RULES = (
    Rule(name="contract-without-header", check=_contract_without_header, by_release=True, ignorable=False),
    Rule(name="may-refuse-writes", check=_may_refuse_writes, by_release=True),
    Rule(name="drop-cascade", check=_cascade, by_release=True),
    Rule(name="attacks-engine", check=_attacks_engine, ignorable=False),
    Rule(name="grant-not-allowed", check=_grant_not_allowed),
    Rule(name="blocks-readers", check=_blocking_rewrite),
    Rule(name="removes-rows", check=_removes_rows),
    Rule(name="update-after-add-column", check=_update_after_add_column),
    Rule(name="definer-without-search-path", check=_definer_without_search_path),
    Rule(name="no-effect", check=_no_effect, inside=False),
    Rule(name="concurrently-on-hypertable", check=_concurrently_on_hypertable),
    Rule(name="index-blocks-hypertable", check=_index_blocks_hypertable, severity="warning"),
    Rule(name="needs-no-transaction", check=_needs_no_transaction),
    Rule(name="integer-overflow", check=_integer_overflow),
    Rule(name="policy-without-if-not-exists", check=_policy_without_if_not_exists),
    Rule(name="volatile-default-on-hypertable", check=_volatile_default_on_hypertable),
    Rule(name="community-feature", check=_community_feature),
)
