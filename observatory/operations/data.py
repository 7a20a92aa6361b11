"""Data for staging: a masked sample of production's traces."""

from __future__ import annotations

import os
import secrets
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from observatory import database
from observatory.operations.database import database_target
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

    The salt of the pseudonyms is drawn once and kept beside the stack's state, readable by its owner alone.

    Args:
        workspace: of the stack that gets the sample, never production.
        source: the stack that it comes from, or a connection string as a role that may read.
        fraction: of the traces, above 0 and at most 1.
        target: the stack's database by a connection string as the role that owns its schema; None: as its last `up`
            left it. What is named so has to be empty, or have had a sample before: it may be anybody's.
        report: gets the progress.

    Raises:
        OperationError: a stack has never been up.
        SampleError: the target is production or the source itself, or has traces of its own, or the fraction is out of
            range; nothing changed.
        DatabaseError: no connection, or PostgreSQL refused.
    """
    if workspace.stack == PRODUCTION:
        raise database.SampleError(
            "A sample is for staging and tests and never goes into production. Name another target"
        )
    into = target or database_target(workspace).conninfo
    elsewhere = Workspace(root=workspace.root, stack=source)
    conninfo = source if is_conninfo(source) else database_target(elsewhere).conninfo
    with task(report, "masked sample") as at:

        def tell(day: datetime, spans: int) -> None:
            at(f"{day:%Y-%m-%d}, {spans} spans")

        return database.copy_sample(
            conninfo,
            into,
            fraction=fraction,
            salt=_salt(workspace),
            samples_only=target is not None,
            on_window=tell,
        )


def is_conninfo(text: str) -> bool:
    """Whether this is a connection string, and no stack's name."""
    return "=" in text or "://" in text


def _salt(workspace: Workspace) -> str:
    """The salt, drawn at the first sample; another one would make other people of the same users."""
    file = workspace.directory / "sample-salts" / workspace.stack
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, partial = tempfile.mkstemp(dir=file.parent)  # mode 0600
    with os.fdopen(handle, "w") as stream:
        stream.write(secrets.token_hex(SALT_BYTES))
    try:
        Path(file).hardlink_to(partial)  # whole or not at all, and never over another one
    except FileExistsError:
        pass
    finally:
        Path(partial).unlink()
    return file.read_text()
