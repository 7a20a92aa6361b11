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
from observatory.database.lint.checked_set import CheckedSet
from observatory.database.lint.declared_schema import Key, created_hypertables, key_of
from observatory.database.lint.findings import Finding, Severity
from observatory.database.lint.ignore_headers import apply_ignores
from observatory.database.lint.rules import RULES
from observatory.database.lint.squawk import CONTRACT_RULES, LIVE_RULES, LintError, squawk
from observatory.database.migrations.files import EDITIONS, Edition, Migration, read_migrations
from observatory.database.migrations.statements import Phase, Statement, parse

__all__ = ["BASELINE", "Finding", "LintError", "Severity", "lint", "lint_all"]

# The files of the first release: they run on a database without rows or clients.
BASELINE = 6

# The rules need the syntax trees of these statements only. The tree of 10 MB of INSERT would take gigabytes.
# One that long and without these words is rows only; the word of the last part starts a name with escapes.
_ROWS = re.compile(r"\(?\s*(INSERT|VALUES|COPY)\b", re.IGNORECASE)
_LONG = 50_000
_OF_INTEREST = re.compile(r"schema_migrations|pg_advisory|pg_terminate|pg_cancel|set_config|u&\"", re.IGNORECASE)


_FIXED = {rule.name for rule in RULES if not rule.ignorable} | {"unusable-file"}
_BY_RELEASE = {rule.name for rule in RULES if rule.by_release}


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
    files: Sequence[Migration],
    *,
    selected: Iterable[Migration] | None = None,
    baseline: int = BASELINE,
    used: int | None = None,
    editions: Sequence[Edition] = EDITIONS,
    with_squawk: bool = True,
) -> list[Finding]:
    """Lint migrations of one set.

    Args:
        files: the whole set with all variants, by version; they exist on disk.
        selected: migrations to lint; None is all.
        baseline: see `lint`.
        used: number of the last migration whose objects a release in use may need; None: no release is known, so a
            change that would break one is a warning.
        editions: whose files may run.
        with_squawk: whether squawk checks the files too.

    Returns:
        The findings by place.

    Raises:
        LintError: squawk is not installed or failed.
    """
    chosen = list(files if selected is None else selected)
    names = {migration.path.name for migration in chosen}
    parsed, findings = _parse_all(files)
    for edition in editions:
        findings.update(_own_findings([file for file in parsed if _runs_on(file, edition)], names, baseline, used))
    if with_squawk:
        named = [file for file in parsed if file.migration.path.name in names]
        findings.update(_squawk_findings(named, parsed, baseline))
    return sorted(
        finding
        for migration in chosen
        for finding in apply_ignores(
            migration,
            [found for found in findings if found.file == migration.path.name],
            fixed=_FIXED,
            by_release=_BY_RELEASE,
        )
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """A usable migration with the syntax trees that the rules check, each with its offset in the file."""

    migration: Migration
    transactional: bool
    phase: Phase
    trees: tuple[tuple[Statement, ast.Node], ...]


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
    checked = (statement for statement in script.statements if not _is_rows(statement.sql))
    trees = tuple((statement, pglast.parse_sql(statement.sql)[0].stmt) for statement in checked)
    return _File(migration=migration, transactional=script.transactional, phase=script.phase, trees=trees)


def _is_rows(sql: str) -> bool:
    return len(sql) > _LONG and _ROWS.match(sql) is not None and not _OF_INTEREST.search(sql)


def _unusable(error: MigrationFileError) -> Finding:
    file, line, column, message = str(error).split(":", 3)
    message = message.strip()
    return Finding(
        file=file, line=int(line), column=int(column), rule="unusable-file", message=message, severity="error"
    )


def _runs_on(file: _File, edition: Edition) -> bool:
    return file.migration.variant in {None, edition}


def _own_findings(files: Sequence[_File], names: Collection[str], baseline: int, used: int | None) -> Iterator[Finding]:
    """Return the findings of this package's rules in the files of one edition, in order."""
    checked = CheckedSet(future_hypertables=_hypertables(files), baseline=baseline, used=used)
    for file in files:
        report = file.migration.path.name in names
        yield from checked.check(
            file.migration, file.trees, transactional=file.transactional, phase=file.phase, report=report
        )


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
    indexes = [(statement, node) for statement, node in file.trees if isinstance(node, ast.IndexStmt)]
    places = [file.migration.place(each.offset) for each, node in indexes if key_of(node.relation) in hypertables]
    return f"{found.file}:{found.line}:{found.column}" in places


def _hypertables(files: Iterable[_File]) -> frozenset[Key]:
    made = (node for file in files for each, node in file.trees if "create_hypertable" in each.sql.lower())
    return frozenset(key for node in made for key in created_hypertables(node))
