"""Runs the rules over the files of one edition, in order: each file sees what the files before it declare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from pglast import ast

from observatory.database.lint.declared_objects import DeclaredObjects
from observatory.database.lint.declared_schema import DeclaredSchema, Key, walk
from observatory.database.lint.findings import Finding, at
from observatory.database.lint.inner_statements import Inner, Routine, inner_statements, routine_of
from observatory.database.lint.live_rules import tables_with_added_columns
from observatory.database.lint.rules import RULES, Context, Rule
from observatory.database.lint.tool_marks import foreign_marks
from observatory.database.migrations.files import Migration
from observatory.database.migrations.statements import Phase, Statement

_UNSEEN_REMEDY = (
    "Write the statements into the file, or check them and write the result into "
    "'-- lint-ignore unseen-statement: REASON'"
)


class CheckedSet:
    """The files of one edition that were checked so far, and what they declare."""

    def __init__(self, *, future_hypertables: frozenset[Key], baseline: int, used: int | None) -> None:
        self._schema = DeclaredSchema(future_hypertables=future_hypertables)
        self._objects = DeclaredObjects()
        self._routines: dict[str, tuple[Routine, ...]] = {}
        self._baseline = baseline
        self._used = used

    def check(
        self,
        migration: Migration,
        trees: Iterable[tuple[Statement, ast.Node]],
        *,
        transactional: bool,
        phase: Phase,
        report: bool,
    ) -> Iterator[Finding]:
        """Apply a file to what is declared; yield its findings if `report`."""
        self._objects.start_file()
        context = Context(
            schema=self._schema,
            version=migration.version,
            variant=migration.variant,
            transactional=transactional,
            live=migration.version > self._baseline,
            used=self._used,
            objects=self._objects,
            contract=phase == "contract",
            altered=set(),
            routines=self._routines,
        )
        if report:
            for offset, message in foreign_marks(migration.sql):
                yield at(migration, offset, rule="mark-of-another-tool", message=message)
        for statement, node in trees:
            for inner in (Inner(0, node, located=True), *inner_statements(node, statement.sql, self._routines)):
                if report:
                    yield from self._findings(migration, statement, inner, context, outer=inner.node is node)
                if inner.node is not None:
                    self._apply(inner.node, context)

    def _apply(self, node: ast.Node, context: Context) -> None:
        context.altered.update(tables_with_added_columns(node, self._objects, context.version))
        self._schema.apply(node, context.version)
        self._objects.apply(node, context.version)
        if isinstance(node, ast.CreateFunctionStmt) and (routine := routine_of(node)):
            name = str(node.funcname[-1].sval)
            self._routines[name] = (*self._routines.get(name, ()), routine)

    def _findings(
        self, migration: Migration, statement: Statement, inner: Inner, context: Context, *, outer: bool
    ) -> Iterator[Finding]:
        start = statement.offset + inner.offset
        if inner.node is None:
            message = f"{inner.unseen}: the linter cannot see what it does. {_UNSEEN_REMEDY}"
            yield at(migration, start, rule="unseen-statement", message=message)
            return
        context = replace(context, nodes=tuple(walk(inner.node)))
        for rule in (rule for rule in RULES if outer or rule.inside):
            for place, message in rule.check(inner.node, context):
                offset = start + place if inner.located else start
                severity = "warning" if self._is_uncertain(rule) else rule.severity
                yield at(migration, offset, rule=rule.name, message=message, severity=severity)

    def _is_uncertain(self, rule: Rule) -> bool:
        """Return whether no release is known that the rule protects."""
        return rule.by_release and self._used is None
