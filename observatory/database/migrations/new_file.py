"""Creates a new migration file with the next free number of the checkout's own range."""

from __future__ import annotations

import re
from pathlib import Path

from observatory.database.errors import MigrationFileError, MigrationNameError
from observatory.database.migrations.files import read_migrations
from observatory.database.migrations.numbering import next_own_number
from observatory.files.atomic import partial_path, remove, write_file
from observatory.files.locks import exclusive_directory

NAME_LENGTH = 100  # characters; a directory entry has 255 bytes
FILE_MODE = 0o644

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TEMPLATE = """\
-- {title}
--
-- Write the statements below. The file and its row in the ledger commit in one transaction. Headers, each as the start
-- of a line above the first statement (see docs/migrations.md):
--   "transaction: false"         each statement runs and is recorded separately
--   "phase: contract"            the file removes what older releases need
--   "lint-ignore RULE: REASON"   the linter ignores a rule in this file
"""


def create_migration(directory: Path, name: str) -> Path:
    """Write the template of a new migration and return its file.

    It contains no statement, so the plan and the deployment refuse it until one is written.

    Args:
        directory: of the migrations.
        name: the title: lower-case letters, digits and underscores; starts with a letter.

    Raises:
        MigrationNameError: the name is not usable.
        MigrationFileError: another migration has this name, the directory is unusable, or the file cannot be written.
    """
    if not _NAME.fullmatch(name) or len(name) > NAME_LENGTH:
        raise MigrationNameError(
            f"{name[:NAME_LENGTH]!r} is not the name of a migration. Write up to {NAME_LENGTH} lower-case letters, "
            "digits and underscores, the first one a letter, such as add_region; the number is added"
        )
    try:
        with exclusive_directory(directory):  # two processes would take the same number
            return _create(directory, name)
    except OSError as error:
        raise MigrationFileError(f"{directory}: no file can be written there: {error.strerror}") from error


def _create(directory: Path, name: str) -> Path:
    existing = read_migrations(directory)
    for migration in existing:
        if migration.name.partition("_")[2] == name:
            raise MigrationFileError(f"{migration.path}: this migration exists. Choose another name, or edit that file")
    version = next_own_number(migration.version for migration in existing)
    path = directory / f"{version:03d}_{name}.sql"
    title = name.replace("_", " ").capitalize()
    partial = partial_path(path)
    try:
        write_file(partial, _TEMPLATE.format(title=title), mode=FILE_MODE)
        path.hardlink_to(partial)  # unlike a rename, a link never replaces a file
    finally:
        remove(partial)
    return path
