"""What the lint says: a finding is a place in a migration file, a rule, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from observatory.database.migrations.files import Migration

Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Finding:
    """Something in a migration that PostgreSQL would accept, or that it would refuse only when it is too late.

    Attributes:
        file: the file's name, without its directory.
        line: counted from 1.
        column: counted from 1.
        rule: its name, by which a header may ignore it.
        message: cause and remedy.
        severity: `error` would fail or break clients, now or later; `warning` is worth a thought before it runs.
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
    """A finding at a character of a migration, counted from 0."""
    file, line, column = migration.place(offset).rsplit(":", 2)
    return Finding(file=file, line=int(line), column=int(column), rule=rule, message=message, severity=severity)
