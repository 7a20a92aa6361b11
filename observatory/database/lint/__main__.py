"""`python -m observatory.database.lint DIRECTORY`: exit status 0 no findings, 1 findings, 2 unusable migrations."""

from __future__ import annotations

import sys
from pathlib import Path

from observatory.database.errors import DatabaseError
from observatory.database.lint import lint_all
from observatory.database.migrations.files import read_migrations


def main(arguments: list[str]) -> int:
    """Print the findings of a directory, one per line; return the exit status."""
    try:
        findings = lint_all(read_migrations(Path(arguments[0] if arguments else "migrations")))
    except DatabaseError as error:
        sys.stderr.write(f"lint: {error}\n")
        return 2
    sys.stdout.writelines(f"{finding}\n" for finding in findings)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
