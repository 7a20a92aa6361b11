"""Copying a masked sample of production's traces, for staging."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import TYPE_CHECKING

from observatory import database
from observatory.files.atomic import write_once
from observatory.operations.migration_targets import database_target
from observatory.operations.stack_outputs import open_workspace
from observatory.progress import Reporter, silent, task
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.database import Sample

PRODUCTION = "production"
SALT_BYTES = 32


def copy_sample(
    workspace: Workspace, *, source: str, fraction: float, target: str | None = None, report: Reporter = silent
) -> Sample:
    """Copy a masked sample of another database into a stack's; see `observatory.database.copy_sample`.

    The salt of the pseudonyms is generated once and stored beside the stack's state, readable by its owner only.

    Args:
        workspace: of the target stack, never production.
        source: the stack that is sampled, or a connection string of a role that may read.
        fraction: of the traces, above 0 and at most 1.
        target: a connection string of the role that owns the schema; None is the stack's database of its last `up`. A
            database named this way must be empty or have earlier samples only.
        report: gets the progress.

    Raises:
        OperationError: a stack does not exist or was never up.
        SampleError: the target is production or the source itself, or has traces of its own, or the fraction is out of
            range; nothing was changed.
        DatabaseError: no connection, or PostgreSQL refused.
    """
    if workspace.stack == PRODUCTION:
        raise database.SampleError(
            "a sample is for staging and tests and never goes into production: name another target"
        )
    into = target or database_target(workspace).conninfo
    conninfo = source if is_conninfo(source) else database_target(open_workspace(source, workspace.root)).conninfo
    with task(report, "masked sample") as show_detail:

        def on_window(day: datetime, spans: int) -> None:
            show_detail(f"{day:%Y-%m-%d}, {spans} spans")

        return database.copy_sample(
            conninfo,
            into,
            fraction=fraction,
            salt=_salt(workspace),
            samples_only=target is not None,
            on_window=on_window,
        )


def is_conninfo(text: str) -> bool:
    """Return whether this is a connection string, not a stack's name."""
    return "=" in text or "://" in text


def _salt(workspace: Workspace) -> str:
    """Return the salt, generated at the first sample: another salt would give the same user another pseudonym."""
    file = workspace.directory / "sample-salts" / workspace.stack
    write_once(file, lambda: secrets.token_hex(SALT_BYTES))
    return file.read_text()
