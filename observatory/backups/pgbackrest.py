"""Backups of the `local` stack's database: pgBackRest, asked in the stack's sandbox.

Components make the stanza with it, the command makes and lists backups with it; how pgBackRest is configured is
`observatory.nodes.pgbackrest`.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from observatory.database.errors import BackupFailedError
from observatory.database.migration_backup import Kind
from observatory.errors import REFUSED
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import command
from observatory.runtime import RuntimeFault, Sandbox

LOCKED = 50  # pgBackRest's exit status where another one holds the stanza's lock (src/build/error/error.yaml)
ANSWER_SECONDS = 60  # for commands that copy nothing
LAST_LINES = 10


class BackupError(RuntimeFault):
    """A backup was not made, or the repository does not answer; the message ends with pgBackRest's last lines."""


class BackupRunningError(BackupError):
    """Another backup is at work; nothing was changed."""

    exit_code = REFUSED


class BackupType(StrEnum):
    """What a backup holds: all; what changed since the last full one; what changed since the last one of any type."""

    FULL = "full"
    DIFFERENTIAL = "differential"
    INCREMENTAL = "incremental"


_TYPES = {BackupType.FULL: "full", BackupType.DIFFERENTIAL: "diff", BackupType.INCREMENTAL: "incr"}


@dataclass(frozen=True, kw_only=True)
class Backup:
    """A finished backup.

    `database_bytes` is the size of what it restores, `repository_bytes` what it added to the repository. `prior` is the
    label of the backup that it builds on. The WAL from `wal_start` to `wal_stop` makes it consistent. `damaged` says
    that it holds pages whose checksums do not fit.
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

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a plain mapping, times in ISO 8601."""
        return {**asdict(self), "started": self.started.isoformat(), "ended": self.ended.isoformat()}


def create_stanza(sandbox: Sandbox) -> None:
    """Make the stanza; one that is there stays.

    Raises:
        BackupError: it failed.
    """
    _pgbackrest(sandbox, "stanza-create", timeout=ANSWER_SECONDS)


def create_backup(sandbox: Sandbox, kind: BackupType, *, timeout: float | None = None) -> Backup:
    """Make a backup and return it. Where there is no full one to build on, a full one is made.

    Args:
        sandbox: the stack's.
        kind: what it is to hold.
        timeout: seconds after which it is ended; what it has copied is used again by the next.

    Raises:
        BackupRunningError: another backup is at work.
        BackupError: it failed, or did not end in time.
    """
    said = _pgbackrest(sandbox, "backup", f"--type={_TYPES[kind]}", timeout=timeout)
    made = re.search(r"new backup label = (\S+)", said)
    for backup in list_backups(sandbox):
        if made and backup.label == made[1]:
            return backup
    raise BackupError(f"pgbackrest backup ended well and its backup is not in the repository:\n{_last(said)}")


def list_backups(sandbox: Sandbox) -> list[Backup]:
    """Return the finished backups, the oldest first.

    Raises:
        BackupError: the repository does not answer.
    """
    stanzas = json.loads(_pgbackrest(sandbox, "info", "--output=json", timeout=ANSWER_SECONDS))
    return [_backup(record) for stanza in stanzas for record in stanza["backup"]]


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
    """Run a pgBackRest command and return what it printed."""
    try:
        done = sandbox.run(command(Paths(), *arguments), timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise BackupError(f"pgbackrest {arguments[0]} did not end within {timeout:g} s and was stopped") from None
    if done.returncode == LOCKED:
        raise BackupRunningError(
            "another backup is at work; wait until it has ended: `observatory backup list` shows it then"
        )
    if done.returncode:
        said = _last(done.stdout + done.stderr)
        raise BackupError(f"pgbackrest {arguments[0]} failed, exit status {done.returncode}:\n{said}")
    return done.stdout


def _last(said: str) -> str:
    return "\n".join(said.splitlines()[-LAST_LINES:])


def verify_backup(sandbox: Sandbox, label: str) -> None:
    """Read every file of a backup, and those of earlier ones that it builds on, and check it against its checksum.

    Raises:
        BackupError: a file is missing or damaged, or there is no such backup.
    """
    # pgBackRest ends well whatever it finds: what counts is what it says. It calls a backup valid that builds on a
    # damaged one, so all of the chain and its WAL must be in order.
    said = _pgbackrest(sandbox, "verify", f"--set={label}", "--output=text", "--verbose", timeout=None)
    if f"backup: {label}, status: valid" not in said or "status: error" in said:
        raise BackupError(f"the backup {label} cannot be verified:\n{_last(said)}")


@dataclass(frozen=True)
class MigrationBackup:
    """The backup before a migration, as `observatory.database.Backup` wants it, of the stack in `sandbox`."""

    sandbox: Sandbox

    def latest_full(self) -> datetime | None:
        """When the newest undamaged full backup ended; None where there is none."""
        with _stops_the_migration():
            found = list_backups(self.sandbox)
        return max((each.ended for each in found if each.type is BackupType.FULL and not each.damaged), default=None)

    def create(self, kind: Kind) -> str:
        """Make a backup and return its label."""
        with _stops_the_migration():
            create_stanza(self.sandbox)  # a first `up` that was interrupted may have left none
            made = create_backup(self.sandbox, BackupType.FULL if kind == "full" else BackupType.INCREMENTAL)
            if made.damaged:
                raise BackupError(f"the backup {made.label} holds pages whose checksums do not fit")
        return made.label

    def verify(self, label: str) -> None:
        """Check the backup's files against their checksums."""
        with _stops_the_migration():
            verify_backup(self.sandbox, label)


@contextlib.contextmanager
def _stops_the_migration() -> Iterator[None]:
    try:
        yield
    except RuntimeFault as error:
        raise BackupFailedError(
            f"No backup, so nothing was migrated: {error}\nPut that right and run again; `observatory backup list` "
            "shows what there is"
        ) from error
