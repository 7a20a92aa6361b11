"""Headers that ignore a rule in a file: `-- lint-ignore <rule>: <reason>`, above the first statement."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile

from observatory.database.lint.findings import Finding, at
from observatory.database.migrations.files import Migration

_IGNORE = re.compile(r"--[ \t]*lint-ignore\b[ \t]*(?P<rule>[a-z0-9-]*)[ \t]*(?::[ \t]*(?P<reason>\S.*))?")
_SQUAWK_IGNORE = re.compile(r"--[ \t]*squawk-ignore\S*")
_FORM = "Write '-- lint-ignore <rule>: <reason>' at the top of the file"


def apply_ignores(
    migration: Migration, findings: Sequence[Finding], *, fixed: Collection[str], by_release: Collection[str]
) -> Iterator[Finding]:
    """Yield the findings that the file's headers do not ignore, and findings about the headers themselves.

    Args:
        migration: the file.
        findings: in it.
        fixed: rules whose errors no header ignores.
        by_release: rules that find nothing where no release runs that they protect.
    """
    ignored = {}
    for offset, line in _header_lines(migration.sql):
        if match := _IGNORE.match(line):
            if match["reason"]:
                ignored[match["rule"]] = offset
            else:
                message = f"the header ignores a rule without a reason. {_FORM}"
                yield at(migration, offset, rule="ignored-without-reason", message=message)
    rules = {finding.rule for finding in findings}
    for rule, offset in ignored.items():
        if rule not in rules and rule not in by_release:
            message = f"the header ignores {rule}, which finds nothing here. Remove the line"
            yield at(migration, offset, rule="ignored-for-nothing", message=message, severity="warning")
    for comment in _SQUAWK_IGNORE.finditer(migration.sql):
        message = f"squawk's own comment ignores a rule without a reason. {_FORM}"
        yield at(migration, comment.start(), rule="ignored-without-reason", message=message)
    for finding in findings:
        if finding.rule not in ignored or (finding.rule in fixed and finding.severity == "error"):
            yield finding


def _header_lines(sql: str) -> Iterator[tuple[int, str]]:
    """Yield the comment lines above the first statement, each with its offset."""
    offset = 0
    for line in takewhile(lambda line: not line.strip() or line.startswith("--"), sql.splitlines(keepends=True)):
        yield offset, line
        offset += len(line)
