"""Refuses what would break the program that applies the migrations: its ledger, its lock, its session, its roles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pglast import ast
from pglast.enums import DiscardMode, VariableSetKind

from observatory.database.lint.declared_objects import DeclaredObjects, dropped, of_statement
from observatory.database.lint.declared_schema import Key, function_name, text_of, walk

LEDGER = ("observatory", "schema_migrations")
_SCHEMAS = {"observatory", "audit"}
_SESSION_LOCKS = {
    *("pg_advisory_lock", "pg_advisory_lock_shared", "pg_try_advisory_lock", "pg_try_advisory_lock_shared"),
    *("pg_advisory_unlock", "pg_advisory_unlock_shared", "pg_advisory_unlock_all"),
}
_ENDING = {"pg_terminate_backend", "pg_cancel_backend"}
# Settings of the session that applies migrations, which the program sets itself.
_ENGINE_SETTINGS = {
    *("session_authorization", "client_connection_check_interval", "application_name"),
    *("default_transaction_read_only", "transaction_read_only", "session_replication_role", "role"),
}
_CHANGES = ast.InsertStmt | ast.UpdateStmt | ast.DeleteStmt | ast.MergeStmt
_ROLE_STATEMENTS = (
    *(ast.CreateRoleStmt, ast.AlterRoleStmt, ast.AlterRoleSetStmt, ast.DropRoleStmt, ast.GrantRoleStmt),
    *(ast.DropOwnedStmt, ast.ReassignOwnedStmt),
)
_DATABASE_STATEMENTS = (
    *(ast.CreatedbStmt, ast.DropdbStmt, ast.AlterDatabaseStmt, ast.AlterDatabaseSetStmt, ast.AlterSystemStmt),
)


def attacks(node: ast.Node, nodes: Sequence[ast.Node], objects: DeclaredObjects) -> Iterator[tuple[int, str]]:
    """Yield what would break the program that applies the migrations: the offset, and the message."""
    yield from _ledger(node, nodes, objects)
    yield from _calls(node, nodes)
    yield from _catalogue(nodes, objects)
    if isinstance(node, _ROLE_STATEMENTS):
        yield 0, "roles belong to the stack, which creates and limits them. Remove the statement"
    elif isinstance(node, _DATABASE_STATEMENTS):
        yield 0, "databases and the server's settings belong to the stack. Remove the statement"
    elif isinstance(node, ast.DiscardStmt) and node.target == DiscardMode.DISCARD_ALL:
        yield 0, "DISCARD ALL would release the migration lock. Remove it"
    elif isinstance(node, ast.DeallocateStmt) and node.name is None:
        yield 0, "DEALLOCATE ALL would end the prepared statements of this program. Name the statement"
    elif isinstance(node, ast.CreateEventTrigStmt | ast.AlterEventTrigStmt):
        yield 0, "event triggers run in the statements of all later migrations. Remove the statement"
    elif isinstance(node, ast.VariableSetStmt):
        yield from _setting(node)


def _ledger(node: ast.Node, nodes: Sequence[ast.Node], objects: DeclaredObjects) -> Iterator[tuple[int, str]]:
    remedy = "Remove the statement; `observatory deploy database` has options that repair"
    if isinstance(node, ast.DropStmt | ast.RenameStmt | ast.AlterObjectSchemaStmt | ast.AlterOwnerStmt):
        if isinstance(node, ast.DropStmt):
            names = list(dropped(node, objects))
        else:
            kind = node.renameType if isinstance(node, ast.RenameStmt) else node.objectType
            names = [of_statement(node, kind, objects)]
        for name in names:
            if name[0] == "schema" and name[-1] in _SCHEMAS:
                yield 0, f"the schema {name[-1]} holds the record of applied migrations. {remedy}"
    tables: list[tuple[str, ...]] = [_table(each, objects) for each in _written(node, nodes)]
    if isinstance(node, ast.DropStmt):
        tables += [name[1:] for name in dropped(node, objects) if name[0] == "relation"]
    if LEDGER in tables:
        yield 0, f"{'.'.join(LEDGER)} is the record of applied migrations. {remedy}"


def _table(node: ast.RangeVar, objects: DeclaredObjects) -> Key:
    """Return schema and name; without a schema the ledger counts as found in every schema of the search path."""
    key = objects.relation(node)
    is_ledger = not node.schemaname and node.relname == LEDGER[1] and LEDGER[0] in objects.search_path
    return LEDGER if is_ledger and not objects.created(("relation", *key)) else key


def _written(node: ast.Node, nodes: Sequence[ast.Node]) -> list[ast.RangeVar]:
    """Return the tables that a statement may change or lock; rows may be read from any."""
    reads = (ast.ViewStmt, ast.CreateTableAsStmt, ast.CommentStmt)
    if isinstance(node, reads):
        return []
    locks = any(isinstance(each, ast.LockingClause) for each in nodes)
    if isinstance(node, ast.SelectStmt | ast.ExplainStmt | _CHANGES) and not locks:
        return [each.relation for each in nodes if isinstance(each, _CHANGES)]
    return [each for each in nodes if isinstance(each, ast.RangeVar)]


def _catalogue(nodes: Iterable[ast.Node], objects: DeclaredObjects) -> Iterator[tuple[int, str]]:
    """Yield changes of PostgreSQL's own tables, which no statement checks."""
    for each in nodes:
        if isinstance(each, _CHANGES):
            schema, name = objects.relation(each.relation)
            is_declared = objects.created(("relation", schema, name)) > 0
            if schema == "pg_catalog" or (not each.relation.schemaname and name.startswith("pg_") and not is_declared):
                message = f"{name} is a system catalogue, which only statements such as ALTER TABLE may change"
                yield max(each.relation.location or 0, 0), f"{message}. Remove the statement"


def _calls(node: ast.Node, nodes: Iterable[ast.Node]) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.CreateFunctionStmt):
        return
    for call in (each for each in nodes if isinstance(each, ast.FuncCall)):
        name = function_name(call)
        place = max(call.location, 0)
        if name in _SESSION_LOCKS:
            remedy = "Use pg_advisory_xact_lock, which ends with the transaction"
            yield place, f"{name} changes the locks of the session, which holds the migration lock. {remedy}"
        elif name in _ENDING:
            yield place, f"{name} may end this session or another one of the stack. Remove it"
        elif name == "set_config" and call.args and _is_engine_setting(text_of(call.args[0])):
            yield place, _setting_message(str(text_of(call.args[0])))


def _setting(node: ast.VariableSetStmt) -> Iterator[tuple[int, str]]:
    name = str(node.name or "").lower()
    if node.kind == VariableSetKind.VAR_SET_MULTI and name.startswith(("transaction", "session characteristics")):
        values = [each for each in walk(node) if isinstance(each, ast.DefElem)]
        if any(each.defname == "transaction_read_only" for each in values) or name.startswith("session"):
            yield 0, "the program controls the transaction of a migration. Remove the statement"
    elif _is_engine_setting(name):
        yield 0, _setting_message(name)


def _is_engine_setting(name: str | None) -> bool:
    return (name or "").lower() in _ENGINE_SETTINGS


def _setting_message(name: str) -> str:
    if name.lower() == "role":
        return "SET ROLE takes the ledger from the program, which records each file as the owner. Remove the statement"
    return f"{name} is set by the program that applies the migrations. Remove the statement"
