"""What a lost machine needs: its keys, exported beforehand, and its recovery from a copy of a backup repository."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from observatory.engines import embedded as engine
from observatory.errors import REFUSED
from observatory.files.atomic import partial_path, remove, write_once
from observatory.operations.backup_dump import dump_key_file
from observatory.operations.stack_bootstrap import bootstrap
from observatory.platforms import open_platform
from observatory.platforms.errors import OperationError, StackNotUpError
from observatory.platforms.platform import check_supported
from observatory.platforms.stack_state import state_options
from observatory.progress import Reporter, silent, task
from observatory.runtime import Sandbox, mounts
from observatory.settings import LocalSettings
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.backups.lost_machine import Recovered
    from observatory.backups.machine_keys import MachineKeys

DIGITS = 12  # of the digest in a file's name


class NotEmptyError(OperationError):
    """The machine has a stack of this name, so that nothing is recovered; nothing was changed."""

    exit_code = REFUSED


def export_keys(workspace: Workspace, file: Path, passphrase: str) -> MachineKeys:
    """Write the keys that a lost machine needs to a new file of mode 0600, encrypted with a passphrase.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack was never up, or its platform is not supported.
        KeyFileError: the passphrase is too short, or the file exists or cannot be written.
    """
    from observatory.backups.machine_keys import write_keys  # noqa: PLC0415 - only for keys

    check_supported(open_platform(workspace), "backup")
    if not (keys := _keys(workspace)):
        raise StackNotUpError(workspace.stack)
    write_keys(file.absolute(), keys, passphrase)
    return keys


def keep_keys(workspace: Workspace) -> Path | None:
    """Write the keys to a private file of the checkout if a repository is outside of the home, and return the file.

    Without them its backups could not be read after `down`.
    """
    outside = workspace.home.is_dir() and mounts.recorded(workspace.home)
    if not outside or not (keys := _keys(workspace)):
        return None
    text = keys.model_dump_json(indent=1, exclude={"created"})
    digest = hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
    file = workspace.directory / "kept-keys" / f"{workspace.stack}-{digest}.json"
    write_once(file, lambda: text)
    return file


def _keys(workspace: Workspace) -> MachineKeys | None:
    """Return the keys of a stack; None where it was never up."""
    from observatory.backups.machine_keys import (  # noqa: PLC0415 - only for keys
        MachineKeys,
        repository_passphrases,
    )

    if not (passphrases := repository_passphrases(workspace.sandbox)):
        return None
    return MachineKeys(
        stack=engine.full_name(state_options(workspace)),
        repositories=passphrases,
        dump_key=_text(dump_key_file(workspace)),
        signing_key=_text(workspace.signing_key_file),
    )


def is_encrypted(key_file: Path) -> bool:
    """Return whether a key file needs a passphrase, unlike one that `down` has kept."""
    from observatory.backups.machine_keys import is_encrypted  # noqa: PLC0415 - only for keys

    return is_encrypted(key_file)


def recover_machine(
    workspace: Workspace,
    *,
    repository: Path,
    key_file: Path,
    passphrase: str,
    accept_gap: bool = False,
    report: Reporter = silent,
) -> Recovered:
    """Make the home of a lost stack again from a copy of a backup repository; then `up` starts it.

    The database is as at the end of the archived WAL, with all roles and passwords. The copy becomes repository 1, the
    next `up` makes a full backup in a new repository 2. `up` sets new passwords of the stack's own logins.

    Args:
        workspace: of the stack, which this machine has not.
        repository: directory of the copy; it is only read.
        key_file: of `export_keys`, or one that `down` has kept.
        passphrase: of that file, if it is encrypted.
        accept_gap: end at a gap in the archived WAL, and lose what is after it.
        report: gets the progress.

    Raises:
        NotEmptyError: the machine has a stack of this name.
        KeyFileError: the key file cannot be used.
        RecoveryRefusedError, BackupError, DatabaseError: see `observatory.backups.lost_machine.recover`.
        UnsupportedOperationError: the platform is not supported.
    """
    from observatory.backups.lost_machine import recover  # noqa: PLC0415 - psycopg only where it is used
    from observatory.backups.machine_keys import read_keys  # noqa: PLC0415
    from observatory.database.migrations.files import read_migrations  # noqa: PLC0415 - as above

    platform = open_platform(workspace)
    check_supported(platform, "backup")
    _check_empty(workspace)
    keys = read_keys(key_file, passphrase)
    known = [each.version for each in read_migrations(workspace.migrations)]
    assert isinstance(platform.settings, LocalSettings)  # noqa: S101 - the only platform with local backups
    with task(report, "Debian 13 root filesystem") as step:
        workspace.ensure_rootfs(progress=lambda message, _fraction: step(message))
    with _new_home(workspace) as home, task(report, "recover the database") as step:
        recovered = recover(
            Sandbox(home, workspace.rootfs),
            repository.absolute(),
            passphrases=keys.repositories,
            settings=_inside(platform.settings),
            known=known,
            accept_gap=accept_gap,
            report=step,
        )
        _write_keys(workspace, keys)
        bootstrap(workspace, report=report)
        _hold_schema(workspace, recovered, known)
        (home / workspace.demonstrated.name).touch()  # the traces of a demonstration are not for recovered data
    return recovered


def _inside(settings: LocalSettings) -> LocalSettings:
    """Return the settings with every repository in the home: the next `up` says how one gets out."""
    backups = settings.backups.model_copy(update={"repositories": ()})
    return settings.model_copy(update={"backups": backups})


def _check_empty(workspace: Workspace) -> None:
    state = engine.exists(state_options(workspace)) and engine.resources(state_options(workspace))
    if state or workspace.discarded or (workspace.home.exists() and any(workspace.home.iterdir())):
        raise NotEmptyError(
            f"this checkout has a stack {workspace.stack}, and a recovery replaces none",
            remedy="If a recovery has made it, `observatory up` starts it. Otherwise recover in a checkout without a "
            "stack, or remove the stack with its data: `observatory down`.",
        )


@contextmanager
def _new_home(workspace: Workspace) -> Iterator[Path]:
    """Yield an empty home that becomes the stack's at the end of the block; a block that raises leaves none."""
    workspace.home.parent.mkdir(parents=True, exist_ok=True)
    home = partial_path(workspace.home)
    try:
        yield home
        if workspace.home.exists():
            workspace.home.rmdir()
        home.rename(workspace.home)
    finally:
        remove(home)


def _write_keys(workspace: Workspace, keys: MachineKeys) -> None:
    """Write the keys of the lost checkout, unless this one has keys of its own."""
    for file, key in ((dump_key_file(workspace), keys.dump_key), (workspace.signing_key_file, keys.signing_key)):
        if key:
            write_once(file, key.__str__)


def _hold_schema(workspace: Workspace, recovered: Recovered, known: list[int]) -> None:
    """Keep `up` from migrating a database that was behind its checkout, as after a rollback."""
    from observatory.operations.database_rollback_fit import held_target  # noqa: PLC0415 - loads psycopg

    applied, current = recovered.migrations, workspace.rollout.read()
    lacking = sorted(set(known) - set(applied))
    if current and applied and lacking:
        target = held_target(lacking, applied, current.schema_target)
        workspace.rollout.compare_and_set(current, current.model_copy(update={"schema_target": target}))


def _text(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.exists() else None
