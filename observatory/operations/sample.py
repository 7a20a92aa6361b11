"""Copying a masked sample of production's traces, for staging."""

from __future__ import annotations

import hashlib
import secrets
import stat
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from observatory import database
from observatory.engines.stack_settings import load_settings
from observatory.files.atomic import write_file, write_once
from observatory.operations.migration_targets import database_target
from observatory.operations.stack_outputs import open_workspace
from observatory.progress import Reporter, silent, task
from observatory.settings import Sample as SampleSettings
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.database import Masking, Sample

PRODUCTION = "production"
KEY_BYTES = 32


def copy_sample(
    workspace: Workspace,
    *,
    source: str,
    fraction: float,
    target: str | None = None,
    new_key: bool = False,
    keep_own_data: bool = False,
    report: Reporter = silent,
) -> Sample:
    """Copy a masked sample of another database into a stack's; see `observatory.database.copy_sample`.

    The key of the pseudonyms is generated once for each target and stored beside the stack's state, readable by its
    owner only. The settings of the target's stack have the masks of own columns, and the values that stay.

    Args:
        workspace: of the target stack, never production.
        source: the stack that is sampled, or a connection string of a role that may read.
        fraction: of the traces, above 0 and at most 1.
        target: a connection string of the role that owns the schema; None is the stack's database of its last `up`.
        new_key: remove the sample that the target has, and copy with another key.
        keep_own_data: copy also beside data that no sample copied.
        report: gets the progress.

    Raises:
        OperationError: a stack does not exist or was never up.
        SampleError: the target is production or the source itself, or has other data or a sample of another key, a
            column has no mask, or the fraction is out of range; nothing was copied.
        LockHeldError: another sample is being copied to the target.
        SettingsError: the stack's configuration is wrong.
        DatabaseError: no connection, or PostgreSQL refused.
    """
    if workspace.stack == PRODUCTION:
        raise database.SampleError(
            "a sample is for staging and tests and never goes into production: name another target"
        )
    into = target or database_target(workspace).conninfo
    conninfo = source if is_conninfo(source) else database_target(open_workspace(source, workspace.root)).conninfo
    settings = _settings(workspace)
    file = _key_file(workspace, target)
    key = secrets.token_hex(KEY_BYTES) if new_key else _key(file)
    with task(report, "masked sample") as show_detail:

        def on_window(day: datetime, spans: int) -> None:
            show_detail(f"{day:%Y-%m-%d}, {spans} spans")

        return database.copy_sample(
            conninfo,
            into,
            fraction=fraction,
            key=key,
            masking=_masking(settings),
            save_key=partial(_save, file, key) if new_key else None,
            keep_own_data=keep_own_data or settings.keep_own_data,
            on_window=on_window,
        )


def is_conninfo(text: str) -> bool:
    """Return whether this is a connection string, not a stack's name."""
    return "=" in text or "://" in text


def _settings(workspace: Workspace) -> SampleSettings:
    if not workspace.config_file.exists():
        return SampleSettings()
    return load_settings(workspace).sample or SampleSettings()


def _masking(settings: SampleSettings) -> Masking:
    known = {str(domain): frozenset(values) for domain, values in settings.known_values.items()}
    return database.Masking(known_values=known, masks=settings.masks)


def _key_file(workspace: Workspace, target: str | None) -> Path:
    """Return the file of the target's key: that of the stack, or of a database that was named by its address."""
    directory = workspace.directory / "sample-keys"
    if target is None:
        return directory / workspace.stack
    from observatory.database.connection import describe  # noqa: PLC0415 - loads psycopg

    address = describe(target).split(' as "', maxsplit=1)[0]
    return directory / f"{workspace.stack}.{hashlib.sha256(address.encode()).hexdigest()[:16]}"


def _key(file: Path) -> str:
    """Return the key, generated at the first sample: another key would give the same user another pseudonym."""
    write_once(file, lambda: secrets.token_hex(KEY_BYTES))
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise database.SampleError(
            f"{file} has the key of the sample's pseudonyms, and other users can read it. Nothing was copied. Replace "
            "the key and the sample with --new-key"
        )
    return file.read_text()


def _save(file: Path, key: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_file(file, key)
