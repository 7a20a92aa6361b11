"""Runs squawk, a linter for PostgreSQL migrations, and converts its findings.

Defines which of its rules do not apply to some files. squawk.toml beside this module disables rules for all files, with
reasons.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from observatory.database.errors import DatabaseError
from observatory.database.lint.findings import Finding, Severity
from observatory.database.migrations.files import Migration

CONFIG = Path(__file__).with_name("squawk.toml")
TIMEOUT_S = 120
_HAS_FINDINGS = 1  # exit code
_SEVERITIES: dict[str, Severity] = {"Error": "error", "Warning": "warning"}

# Rules about locks on tables in use.
LIVE_RULES = {
    *("require-concurrent-index-creation", "require-concurrent-index-deletion", "constraint-missing-not-valid"),
    *("adding-foreign-key-constraint", "disallowed-unique-constraint", "adding-serial-primary-key-field"),
    *("adding-not-nullable-field", "adding-required-field", "adding-field-with-default", "changing-column-type"),
}
# Rules about changes that break older releases; a file with `-- phase: contract` runs when none is in use.
CONTRACT_RULES = {"adding-required-field"}


class LintError(DatabaseError):
    """squawk is missing or failed; the message has its output, or how to install it."""


def squawk(migrations: Sequence[Migration], *, transactional: bool) -> Iterator[Finding]:
    """Yield squawk's findings in files that PostgreSQL's own parser accepts.

    Args:
        migrations: files on disk.
        transactional: each runs in one transaction.

    Raises:
        LintError: squawk is not installed or failed.
    """
    if not migrations:
        return
    by_path = {str(migration.path): migration for migration in migrations}
    for found in _run(by_path, transactional=transactional):
        if found["rule_name"] != "syntax-error":  # squawk's parser accepts less than PostgreSQL's
            yield _finding(by_path[found["file"]], found)


def _run(paths: Iterable[str], *, transactional: bool) -> list[dict[str, Any]]:
    assume = "--assume-in-transaction" if transactional else "--no-assume-in-transaction"
    command = [_program(), "--config", str(CONFIG), "--reporter", "json", assume, *paths]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode not in {0, _HAS_FINDINGS}:
        raise LintError(f"squawk failed with exit code {done.returncode}: {done.stderr.strip()}")
    findings: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return findings


def _program() -> str:
    """Return the program of the package squawk-cli: beside this interpreter, else on PATH."""
    beside = Path(sys.executable).with_name("squawk")
    program = str(beside) if beside.exists() else shutil.which("squawk")
    if program is None:
        raise LintError(
            "squawk is not installed. Install the package squawk-cli, for example with `make dev-environment`"
        )
    return program


def _finding(migration: Migration, found: dict[str, Any]) -> Finding:
    message = ". ".join(text.rstrip(".") for text in (found["message"], found["help"]) if text)
    return Finding(
        file=migration.path.name,
        line=found["line"] + 1,
        column=found["column"] + 1,
        rule=found["rule_name"],
        message=message,
        severity=_SEVERITIES.get(found["level"], "warning"),
    )
