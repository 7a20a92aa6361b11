"""Creating migration files in a checkout; needs no stack."""

from __future__ import annotations

from pathlib import Path

import observatory
from observatory import database
from observatory.workspace import Workspace


def create_migration(name: str, *, root: Path | None = None) -> Path:
    """Write the template of a new migration and return its file.

    Args:
        name: the title, such as `add_region`; the number is added.
        root: the checkout, by default the one that contains this library.

    Raises:
        MigrationNameError: the name is not usable.
        MigrationFileError: another migration has this name, or the file cannot be written.
    """
    root = root or Path(observatory.__file__).resolve().parent.parent
    return database.create_migration(Workspace(root=root, stack="local").migrations, name)
