"""Findings of the linter: a place in a migration file, a rule, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from observatory.database.migrations.files import Migration

Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Finding:
    """A problem in a migration that PostgreSQL accepts, or rejects only on the live database.

    Attributes:
        file: the file's name, without its directory.
        line: counts from 1.
        column: counts from 1.
        rule: its name, for the header that ignores it.
        message: cause and remedy.
        severity: `error`: the migration fails or breaks clients; `warning`: check it before it runs.
    """

    file: str
    line: int
    column: int
    rule: str
    message: str
    severity: Severity

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.severity}: {self.message} [{self.rule}]"


def at(migration: Migration, offset: int, *, rule: str, message: str, severity: Severity = "error") -> Finding:
    """Return a finding at a character of a migration; `offset` counts from 0."""
    file, line, column = migration.place(offset).rsplit(":", 2)
    return Finding(file=file, line=int(line), column=int(column), rule=rule, message=message, severity=severity)
