"""What is wrong with migrations that PostgreSQL would accept, or refuse only on the live database.

squawk knows PostgreSQL; the rules here know TimescaleDB, its editions and this engine. A header at the top of a file
ignores a rule in that file, and has to say why:

    -- lint-ignore ban-drop-column: no release reads it since v0.4.0

Owns which findings count. Changes nothing and needs no database.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pglast
from pglast import ast

from observatory.database.errors import MigrationFileError
from observatory.database.lint.declared_schema import Key, Schema, key_of, made_hypertables
from observatory.database.lint.findings import Finding, Severity, at
from observatory.database.lint.ignore_headers import apply_ignores
from observatory.database.lint.rules import RULES, Setting
from observatory.database.lint.squawk import CONTRACT_RULES, LIVE_RULES, LintError, squawk
from observatory.database.migrations.files import EDITIONS, Edition, Migration, read_migrations
from observatory.database.migrations.statements import Phase, parse

__all__ = ["BASELINE", "Finding", "LintError", "Severity", "lint", "lint_all"]

# They came with the first release: they meet a database without rows or clients.
BASELINE = 6

# Other statements need no tree, which for 10 MB of INSERT would take gigabytes.
_LOOKED_AT = re.compile(r"(CREATE|ALTER|DROP|SELECT|WITH|CALL|REINDEX|VACUUM)\b", re.IGNORECASE)


def lint(target: Migration | Path, *, baseline: int = BASELINE) -> list[Finding]:
    """Look at one migration; the files before it in its directory say which tables there are.

    Args:
        target: a migration, or its file.
        baseline: files up to this number run before anybody uses the tables, so what they lock does not matter.

    Returns:
        The findings by place; none when all is well.

    Raises:
        MigrationFileError: the directory is not a set of migrations, or lacks the file.
        LintError: squawk is not installed, or failed.
    """
    path = target if isinstance(target, Path) else target.path
    files = read_migrations(path.parent)
    wanted = [migration for migration in files if migration.path.name == path.name]
    if not wanted:
        raise MigrationFileError(f"{path}: no such migration. Name a file of the directory")
    return lint_all(files, wanted=wanted, baseline=baseline)


def lint_all(
    files: Sequence[Migration], *, wanted: Iterable[Migration] | None = None, baseline: int = BASELINE
) -> list[Finding]:
    """Look at migrations of one set.

    Args:
        files: the whole set with all variants, by version, as files on disk.
        wanted: those to look at; None is all.
        baseline: see `lint`.

    Returns:
        The findings by place.

    Raises:
        LintError: squawk is not installed, or failed.
    """
    chosen = list(files if wanted is None else wanted)
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
    """A usable migration with the trees that the rules look at, each with its offset in the file."""

    migration: Migration
    transactional: bool
    phase: Phase
    trees: tuple[tuple[int, ast.Node], ...]


def _parse_all(files: Iterable[Migration]) -> tuple[list[_File], set[Finding]]:
    """The usable files, and a finding for each of the others."""
    parsed, findings = [], set()
    for migration in files:
        try:
            parsed.append(_parse_one(migration))
        except MigrationFileError as error:
            findings.add(_unusable(error))
    return parsed, findings


def _parse_one(migration: Migration) -> _File:
    script = parse(migration)
    looked_at = (statement for statement in script.statements if _LOOKED_AT.match(statement.sql))
    trees = tuple((statement.offset, pglast.parse_sql(statement.sql)[0].stmt) for statement in looked_at)
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
    """What our rules find in the files of one edition, in order."""
    schema = Schema(future_hypertables=_hypertables(files))
    for file in files:
        migration = file.migration
        setting = Setting(
            schema=schema,
            version=migration.version,
            variant=migration.variant,
            transactional=file.transactional,
            live=migration.version > baseline,
        )
        for offset, node in file.trees:
            for rule in RULES if migration.path.name in names else ():
                for place, message in rule.check(node, setting):
                    yield at(migration, offset + place, rule=rule.name, message=message, severity=rule.severity)
            schema.learn(node, migration.version)


def _squawk_findings(chosen: Sequence[_File], files: Sequence[_File], baseline: int) -> Iterator[Finding]:
    hypertables = _hypertables(files)
    for transactional in (True, False):
        by_name = {file.migration.path.name: file for file in chosen if file.transactional is transactional}
        for found in squawk([file.migration for file in by_name.values()], transactional=transactional):
            file = by_name[found.file]
            early = file.migration.version <= baseline and found.rule in LIVE_RULES
            meant = file.phase == "contract" and found.rule in CONTRACT_RULES
            if not (early or meant or _is_on_hypertable(found, file, hypertables)):
                yield found


def _is_on_hypertable(found: Finding, file: _File, hypertables: frozenset[Key]) -> bool:
    """Whether squawk asks for CONCURRENTLY where TimescaleDB refuses it; our own rules say what to do there."""
    if found.rule != "require-concurrent-index-creation":
        return False
    indexes = [(offset, node) for offset, node in file.trees if isinstance(node, ast.IndexStmt)]
    places = [file.migration.place(offset) for offset, node in indexes if key_of(node.relation) in hypertables]
    return f"{found.file}:{found.line}:{found.column}" in places


def _hypertables(files: Iterable[_File]) -> frozenset[Key]:
    return frozenset(key for file in files for _, node in file.trees for key in made_hypertables(node))
