"""Finds problems in migrations that PostgreSQL accepts, or rejects only on the live database.

squawk checks for PostgreSQL's problems; the rules of this package check for those of TimescaleDB, its editions and the
way migrations are applied. A header at the top of a file ignores a rule in that file and gives the reason:

    -- lint-ignore ban-drop-column: no release reads it since v0.4.0

Decides which findings count. Changes nothing and needs no database.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pglast
from pglast import ast

from observatory.database.errors import MigrationFileError
from observatory.database.lint.declared_schema import DeclaredSchema, Key, created_hypertables, key_of
from observatory.database.lint.findings import Finding, Severity, at
from observatory.database.lint.ignore_headers import apply_ignores
from observatory.database.lint.rules import RULES, Context
from observatory.database.lint.squawk import CONTRACT_RULES, LIVE_RULES, LintError, squawk
from observatory.database.migrations.files import EDITIONS, Edition, Migration, read_migrations
from observatory.database.migrations.statements import Phase, parse

__all__ = ["BASELINE", "Finding", "LintError", "Severity", "lint", "lint_all"]

# The files of the first release: they run on a database without rows or clients.
BASELINE = 6

# The rules need the syntax trees of these statements only. The tree of 10 MB of INSERT would take gigabytes.
_CHECKED = re.compile(r"(CREATE|ALTER|DROP|SELECT|WITH|CALL|REINDEX|VACUUM)\b", re.IGNORECASE)


def lint(target: Migration | Path, *, baseline: int = BASELINE) -> list[Finding]:
    """Lint one migration; the files before it in its directory define the existing tables.

    Args:
        target: a migration, or its file.
        baseline: files up to this number run before the tables are in use, so their locks do not matter.

    Returns:
        The findings by place; empty when there is none.

    Raises:
        MigrationFileError: the directory is not a set of migrations, or lacks the file.
        LintError: squawk is not installed or failed.
    """
    path = target if isinstance(target, Path) else target.path
    files = read_migrations(path.parent)
    selected = [migration for migration in files if migration.path.name == path.name]
    if not selected:
        raise MigrationFileError(f"{path}: there is no such migration. Name a file of the directory")
    return lint_all(files, selected=selected, baseline=baseline)


def lint_all(
    files: Sequence[Migration], *, selected: Iterable[Migration] | None = None, baseline: int = BASELINE
) -> list[Finding]:
    """Lint migrations of one set.

    Args:
        files: the whole set with all variants, by version; they exist on disk.
        selected: migrations to lint; None is all.
        baseline: see `lint`.

    Returns:
        The findings by place.

    Raises:
        LintError: squawk is not installed or failed.
    """
    chosen = list(files if selected is None else selected)
    names = {migration.path.name for migration in chosen}
    parsed, findings = _parse_all(files)
    for edition in EDITIONS:
        findings.update(_own_findings([file for file in parsed if _runs_on(file, edition)], names, baseline))
    findings.update(_squawk_findings([file for file in parsed if file.migration.path.name in names], parsed, baseline))
    return sorted(
        finding
        for migration in chosen
        for finding in apply_ignores(migration, [found for found in findings if found.file == migration.path.name])
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """A usable migration with the syntax trees that the rules check, each with its offset in the file."""

    migration: Migration
    transactional: bool
    phase: Phase
    trees: tuple[tuple[int, ast.Node], ...]


def _parse_all(files: Iterable[Migration]) -> tuple[list[_File], set[Finding]]:
    """Return the usable files, and a finding for each other one."""
    parsed, findings = [], set()
    for migration in files:
        try:
            parsed.append(_parse_one(migration))
        except MigrationFileError as error:
            findings.add(_unusable(error))
    return parsed, findings


def _parse_one(migration: Migration) -> _File:
    script = parse(migration)
    checked = (statement for statement in script.statements if _CHECKED.match(statement.sql))
    trees = tuple((statement.offset, pglast.parse_sql(statement.sql)[0].stmt) for statement in checked)
    return _File(migration=migration, transactional=script.transactional, phase=script.phase, trees=trees)


def _unusable(error: MigrationFileError) -> Finding:
    file, line, column, message = str(error).split(":", 3)
    message = message.strip()
    return Finding(
        file=file, line=int(line), column=int(column), rule="unusable-file", message=message, severity="error"
    )


def _runs_on(file: _File, edition: Edition) -> bool:
    return file.migration.variant in {None, edition}


def _own_findings(files: Sequence[_File], names: Collection[str], baseline: int) -> Iterator[Finding]:
    """Return the findings of this package's rules in the files of one edition, in order."""
    schema = DeclaredSchema(future_hypertables=_hypertables(files))
    for file in files:
        migration = file.migration
        context = Context(
            schema=schema,
            version=migration.version,
            variant=migration.variant,
            transactional=file.transactional,
            live=migration.version > baseline,
        )
        for offset, node in file.trees:
            for rule in RULES if migration.path.name in names else ():
                for place, message in rule.check(node, context):
                    yield at(migration, offset + place, rule=rule.name, message=message, severity=rule.severity)
            schema.apply(node, migration.version)


def _squawk_findings(chosen: Sequence[_File], files: Sequence[_File], baseline: int) -> Iterator[Finding]:
    hypertables = _hypertables(files)
    for transactional in (True, False):
        by_name = {file.migration.path.name: file for file in chosen if file.transactional is transactional}
        for found in squawk([file.migration for file in by_name.values()], transactional=transactional):
            file = by_name[found.file]
            early = file.migration.version <= baseline and found.rule in LIVE_RULES
            intended = file.phase == "contract" and found.rule in CONTRACT_RULES
            if not (early or intended or _is_on_hypertable(found, file, hypertables)):
                yield found


def _is_on_hypertable(found: Finding, file: _File, hypertables: frozenset[Key]) -> bool:
    """Return whether squawk demands CONCURRENTLY where TimescaleDB rejects it; this package has a rule for that."""
    if found.rule != "require-concurrent-index-creation":
        return False
    indexes = [(offset, node) for offset, node in file.trees if isinstance(node, ast.IndexStmt)]
    places = [file.migration.place(offset) for offset, node in indexes if key_of(node.relation) in hypertables]
    return f"{found.file}:{found.line}:{found.column}" in places


def _hypertables(files: Iterable[_File]) -> frozenset[Key]:
    return frozenset(key for file in files for _, node in file.trees for key in created_hypertables(node))
