"""Backups of the `local` stack's database: runs pgBackRest in the stack's sandbox.

Creates the stanza, makes, lists and verifies backups. `observatory.nodes.pgbackrest` configures pgBackRest;
`observatory.backups.repository` finds what the repository lacks.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Any

from observatory.errors import REFUSED
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import cipher_file, command, repository, settings_file
from observatory.nodes.programs.backup_repository import (
    Node,
    describe_damage,
    expire,
    node_of,
    read_stanza,
    records,
)
from observatory.runtime import RuntimeFault, Sandbox

OTHER_DATABASE = (28, 51)  # pgBackRest's exit statuses when the repository and the database have other identifiers
UNREADABLE = (29, 95)  # those of a file with another format, and of one that was encrypted with another passphrase
LOCKED = 50  # pgBackRest's exit status when another process holds the stanza's lock (src/build/error/error.yaml)
QUERY_TIMEOUT_S = 60  # of commands that copy no data
LAST_LINES = 10
GIVE_UP = "move {place} away and run `observatory up`, which makes a new repository with a full backup."


class BackupError(RuntimeFault):
    """A command of pgBackRest failed; the message ends with its last lines."""


class BackupRunningError(BackupError):
    """Another backup is running; nothing was changed."""

    exit_code = REFUSED


class BackupDamagedError(BackupError):
    """The database has damaged pages, and so has the new backup, which is kept; no earlier backup has expired."""


class RepositoryUnreadableError(BackupError):
    """pgBackRest cannot read the repository; nothing was changed."""


class OtherDatabaseError(BackupError):
    """The repository has the backups of another database; nothing was changed."""


class BackupType(StrEnum):
    """What a backup contains: everything; the changes since the last full one; the changes since the last one."""

    FULL = "full"
    DIFFERENTIAL = "differential"
    INCREMENTAL = "incremental"


_TYPES = {BackupType.FULL: "full", BackupType.DIFFERENTIAL: "diff", BackupType.INCREMENTAL: "incr"}


@dataclass(frozen=True, kw_only=True)
class Backup:
    """A finished backup.

    Attributes:
        label: its name in the repository.
        type: full, differential or incremental.
        started: its start, in UTC.
        ended: its end, in UTC.
        database_bytes: size of the restored database.
        repository_bytes: size that it added to the repository.
        prior: label of the backup that it builds on; None for a full backup.
        wal_start: first WAL segment that makes it consistent.
        wal_stop: last such segment.
        damaged: it contains pages with wrong checksums.
        obstacle: why it cannot be restored to the present; empty where it can, None where that was not checked.
    """

    label: str
    type: BackupType
    started: datetime
    ended: datetime
    database_bytes: int
    repository_bytes: int
    prior: str | None
    wal_start: str
    wal_stop: str
    damaged: bool
    obstacle: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a plain mapping, times in ISO 8601."""
        return {**asdict(self), "started": self.started.isoformat(), "ended": self.ended.isoformat()}


def create_stanza(sandbox: Sandbox) -> None:
    """Create the stanza; an existing one stays.

    Raises:
        BackupError: pgBackRest failed.
    """
    _pgbackrest(sandbox, "stanza-create", timeout=QUERY_TIMEOUT_S)


def archive_wal(sandbox: Sandbox) -> None:
    """Switch to a new WAL segment, and wait until the repository has the one before.

    Raises:
        BackupError: it does not arrive, or another error of pgBackRest's check.
    """
    _pgbackrest(sandbox, "check", timeout=QUERY_TIMEOUT_S)


def create_backup(sandbox: Sandbox, kind: BackupType, *, timeout: float | None = None) -> Backup:
    """Make a backup and return it; a full one where there is none to build on. Then earlier ones may expire.

    Args:
        sandbox: of the stack.
        kind: its type.
        timeout: seconds until it is stopped; the next backup reuses the copied files.

    Raises:
        BackupRunningError: another backup is running.
        BackupDamagedError: the database has damaged pages; the backup is kept, and no earlier one has expired.
        BackupError: it failed or timed out, or earlier backups could not expire.
    """
    output = _pgbackrest(sandbox, "backup", f"--type={_TYPES[kind]}", timeout=timeout)
    label = next(iter(re.findall(r"new backup label = (\S+)", output)), None)
    backup = next((each for each in list_backups(sandbox) if each.label == label), None)
    if backup is None:
        raise BackupError(f"pgbackrest backup succeeded, but the repository lacks its backup:\n{_last_lines(output)}")
    if backup.damaged:
        damage = describe_damage(repository_node(sandbox), backup.label)
        raise BackupDamagedError(
            f"the backup {backup.label} contains damaged pages: {damage}",
            remedy="It is kept, and earlier backups do not expire until a sound full one exists. Repair the database: "
            "see docs/runbooks/StorageBackupDamaged.md.",
        )
    if failure := expire(repository_node(sandbox), days=repository_settings(sandbox)["retention_days"]):
        raise BackupError(failure)
    return backup


def list_backups(sandbox: Sandbox) -> list[Backup]:
    """Return the finished backups, oldest first.

    Raises:
        RepositoryUnreadableError: pgBackRest cannot read the repository.
    """
    stanza, error = read_stanza(Node(partial(_run, sandbox), command(Paths()), (), ()))
    if error:
        raise unreadable(sandbox, error)
    return [_backup(record) for record in records(stanza)]


def repository_exists(sandbox: Sandbox) -> bool:
    """Return whether there is a repository with files."""
    place = sandbox.host_path(repository(Paths()))
    return any(each.is_file() for each in place.rglob("*"))


def unreadable(sandbox: Sandbox, reason: str) -> RepositoryUnreadableError:
    """Return the error for a repository that pgBackRest cannot read, with the way out."""
    place = sandbox.host_path(repository(Paths()))
    return RepositoryUnreadableError(
        f"the backup repository {place} cannot be read: {reason}",
        remedy="Another passphrase may have encrypted it, or its files are damaged. Restore them or the passphrase "
        f"({sandbox.host_path(cipher_file(Paths()))}). Or give these backups up: {GIVE_UP.format(place=place)}",
    )


def repository_settings(sandbox: Sandbox) -> dict[str, Any]:
    """Return the settings of the repository, which `up` writes.

    Raises:
        BackupError: the stack has none yet.
    """
    file = sandbox.host_path(settings_file(Paths()))
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BackupError(f"{file} does not exist", remedy="Run `observatory up`, which writes it.") from None
    return settings


def repository_node(sandbox: Sandbox) -> Node:
    """Return the stack's machine for `observatory.nodes.programs.backup_repository`."""
    return node_of(repository_settings(sandbox), partial(_run, sandbox))


def _run(sandbox: Sandbox, argv: Sequence[str]) -> tuple[int, str]:
    done = sandbox.run(argv, check=False)
    return done.returncode, done.stdout or done.stderr


def _backup(record: dict[str, Any]) -> Backup:
    return Backup(
        label=record["label"],
        type=next(kind for kind, name in _TYPES.items() if name == record["type"]),
        started=datetime.fromtimestamp(record["timestamp"]["start"], UTC),
        ended=datetime.fromtimestamp(record["timestamp"]["stop"], UTC),
        database_bytes=record["info"]["size"],
        repository_bytes=record["info"]["repository"]["delta"],
        prior=record["prior"],
        wal_start=record["archive"]["start"],
        wal_stop=record["archive"]["stop"],
        damaged=bool(record.get("error")),
    )


def _pgbackrest(sandbox: Sandbox, *arguments: str, timeout: float | None) -> str:
    """Run a pgBackRest command and return its output."""
    try:
        done = sandbox.run(command(Paths(), *arguments), timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise BackupError(f"pgbackrest {arguments[0]} did not finish within {timeout:g} s and was stopped") from None
    if done.returncode == LOCKED:
        raise BackupRunningError(
            "another backup is running. Wait until it has finished: `observatory backup list` then shows it"
        )
    if done.returncode in OTHER_DATABASE:
        place = sandbox.host_path(repository(Paths()))
        raise OtherDatabaseError(
            f"pgbackrest {arguments[0]} failed: the backup repository {place} belongs to another database",
            remedy=f"Put that database's data back, or give its backups up: {GIVE_UP.format(place=place)}",
        )
    if done.returncode:
        output = done.stdout + done.stderr
        if done.returncode in UNREADABLE or "unable to load info file" in output:
            error = re.search(r"ERROR: \[\d+\]: ([ -~]+)", output)
            raise unreadable(sandbox, error[1].rstrip(": ") if error else f"exit status {done.returncode}")
        raise BackupError(
            f"pgbackrest {arguments[0]} failed with exit status {done.returncode}:\n{_last_lines(output)}"
        )
    return done.stdout


def _last_lines(output: str) -> str:
    return "\n".join(output.splitlines()[-LAST_LINES:])


def verify_backup(sandbox: Sandbox, label: str) -> None:
    """Check the files of a backup, and of the earlier ones that it builds on, against their checksums.

    Raises:
        BackupError: a file is missing or damaged, or the backup does not exist.
    """
    # The exit status is 0 whatever pgBackRest finds, so the output decides. It also calls a backup valid that builds on
    # a damaged one, so the whole chain and its WAL must be free of errors.
    output = _pgbackrest(sandbox, "verify", f"--set={label}", "--output=text", "--verbose", timeout=None)
    if f"backup: {label}, status: valid" not in output or "status: error" in output:
        raise BackupError(f"verification of the backup {label} failed:\n{_last_lines(output)}")
