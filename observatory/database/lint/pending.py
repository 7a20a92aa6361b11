"""The linter's verdict on pending migrations: an error stops a plan and a deployment, a warning is printed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from observatory.database.errors import LintRefusedError
from observatory.database.lint import lint_all
from observatory.database.lint.findings import Finding
from observatory.database.lint.squawk import LintError
from observatory.database.migrations.files import Edition, Migration

_REMEDY = (
    "Nothing was changed. Correct the files. A line above the first statement of a file ignores a rule there: "
    "'-- lint-ignore RULE: REASON'"
)


def findings_in(
    files: Sequence[Migration], pending: Sequence[Migration], *, edition: Edition, used: int | None
) -> list[Finding]:
    """Lint pending migrations. Without squawk only the rules of this package check them, and a finding says so.

    Args:
        files: the whole set with all variants, by version.
        pending: migrations to lint.
        edition: of the server.
        used: number of the last migration whose objects a release in use may need; None: no release is in use.
    """
    if not pending:
        return []
    check = partial(lint_all, files, selected=pending, used=used, editions=[edition])
    try:
        return check()
    except LintError as error:
        missing = Finding(
            file=pending[0].file, line=1, column=1, rule="not-linted", message=str(error), severity="warning"
        )
        return [missing, *check(with_squawk=False)]


def refuse_errors(findings: Sequence[Finding]) -> None:
    """Refuse files with findings of severity `error`.

    Raises:
        LintRefusedError: there are some; the message has them.
    """
    errors = [str(finding) for finding in findings if finding.severity == "error"]
    if errors:
        raise LintRefusedError("\n".join([*errors, _REMEDY]))
