"""Data for staging: a masked sample of production's traces."""

from __future__ import annotations

import os
import secrets
import tempfile
from datetime import datetime
from pathlib import Path

from observatory import database, engine
from observatory.bootstrap import OperationError, state_options
from observatory.database import Sample, SampleError
from observatory.progress import Reporter, silent, task
from observatory.workspace import Workspace

PRODUCTION = "production"
SCHEMA_TYPE = "database:Schema"
SALT_BYTES = 32


def copy_sample(workspace: Workspace, *, source: str, fraction: float, report: Reporter = silent) -> Sample:
    """Copy a masked sample of another database into a stack's; see `observatory.database.copy_sample`.

    The salt of the pseudonyms is drawn once and kept beside the stack's state, readable by its owner alone.

    Args:
        workspace: of the stack that gets the sample, never production.
        source: the stack that it comes from, or a connection string as a role that may read.
        fraction: of the traces, above 0 and at most 1.
        report: gets the progress.

    Raises:
        OperationError: a stack has never been up.
        SampleError: the target is production or the source itself, or the fraction is out of range; nothing changed.
        DatabaseError: no connection, or PostgreSQL refused.
    """
    if workspace.stack == PRODUCTION:
        raise SampleError("A sample is for staging and tests and never goes into production. Name another target")
    target = _owner_conninfo(workspace)
    conninfo = source if _is_conninfo(source) else _owner_conninfo(Workspace(root=workspace.root, stack=source))
    with task(report, "masked sample") as at:

        def tell(day: datetime, spans: int) -> None:
            at(f"{day:%Y-%m-%d}, {spans} spans")

        return database.copy_sample(conninfo, target, fraction=fraction, salt=_salt(workspace), on_window=tell)


def _is_conninfo(source: str) -> bool:
    return "=" in source or "://" in source


def _owner_conninfo(workspace: Workspace) -> str:
    options = state_options(workspace)
    records = engine.resources(options) if engine.exists(options) else ()
    found = next((record.outputs for record in records if record.type.endswith(SCHEMA_TYPE)), None)
    if found is None or not isinstance(found.get("conninfo"), str):
        raise OperationError(
            f"the stack {workspace.stack!r} has no database that is reached from here: run `observatory up`, "
            "or give a connection string"
        )
    return str(found["conninfo"])


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
