"""Clones: read-only databases of an earlier time beside the live one, which stay open until they are closed.

A clone is a restored instance that outlives its command. Its server listens on a unix socket only, in a directory of
the operator's, admits only the role that owns the schema, and has no network: it can be read, and can change nothing
outside. Clones are few (`MOST_CLONES`), and are closed after `OPEN_FOR`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from psycopg.conninfo import make_conninfo

from observatory.backups.cover import find_cover
from observatory.backups.flashback.errors import CloneRefusedError, UnknownCloneError
from observatory.backups.restored import OnOther, RestoredInstance, restored_instance
from observatory.backups.scratch import ScratchDirectory, remove_abandoned, scratch_directories, scratch_directory
from observatory.backups.target import RecoveryTarget
from observatory.database.connection import MAX_SOCKET_PATH
from observatory.files.locks import exclusive
from observatory.runtime import Sandbox

KIND = "flashback"
MOST_CLONES = 3
OPEN_FOR = timedelta(hours=24)
TEMPORARY_FILES = "1GB"  # of one session of a clone: its sorts are on the same disk
FIRST_PORT = 6543  # each clone has another one, so that sessions are distinguished
BLOCK = 512  # bytes, of st_blocks: stat(2)


@dataclass(frozen=True, kw_only=True)
class Clone:
    """An open clone.

    Attributes:
        name: by which it is closed.
        target: the time that it shows, as it was requested.
        last_transaction: when the last transaction that it has ended; None if the backup has no later one.
        opened: when it could be read.
        closes: when it is closed at the latest.
        backup: label of the backup that it was restored from.
        repository: number of the backup's repository.
        database: its name.
        user: whose sessions the connection string opens.
        port: of its socket.
        host: directory of its socket.
    """

    name: str
    target: str
    last_transaction: datetime | None
    opened: datetime
    closes: datetime
    backup: str
    repository: int
    database: str
    user: str
    port: int
    host: str

    @property
    def conninfo(self) -> str:
        """The connection string, for psql and every other program of this machine's operator."""
        return make_conninfo(host=self.host, port=self.port, user=self.user, dbname=self.database)


OnStep = Callable[[str], None]  # what happens next


def open_clone(
    sandbox: Sandbox,
    target: RecoveryTarget,
    *,
    database: str,
    user: str,
    repository: int | None = None,
    on_step: OnStep = lambda _step: None,
    on_other: OnOther = lambda _line: None,
) -> Clone:
    """Return the clone of a target: the open one, else a new one.

    Args:
        sandbox: of the stack.
        target: the time.
        database: that its connection string names.
        user: who owns the schema, so that the sessions are no superuser's.
        repository: number of the only repository to restore from; None: any.
        on_step: called before each step.
        on_other: called before another repository is used, because the first one turned out to be damaged.

    Raises:
        CloneRefusedError: as many clones as possible are open.
        UncoveredTargetError: no backup leads to the target.
        NotEnoughSpaceError: the disk is too small.
        RestoreError: the restore or the recovery failed.
    """
    with exclusive(sandbox.home / "lock" / "flashback.lock"):
        close_expired(sandbox)
        clones = list_clones(sandbox)
        if found := reusable(clones, target):
            return found
        if len(clones) >= MOST_CLONES:
            raise CloneRefusedError(
                f"{len(clones)} clones are open, and that is the limit: {', '.join(each.name for each in clones)}",
                remedy="Close one: `observatory backup flashback close NAME`.",
            )
        on_step("find the backup")
        cover = find_cover(sandbox, target, repository=repository)
        on_step(f"restore {cover.label}, about {cover.estimated_s:.0f} s")
        port = next(
            port for port in range(FIRST_PORT, FIRST_PORT + MOST_CLONES) if port not in {c.port for c in clones}
        )
        with (
            scratch_directory(sandbox, KIND) as directory,
            restored_instance(
                cover, directory=directory, detached=True, port=port, on_other=on_other if repository is None else None
            ) as instance,
        ):
            clone = _describe(directory, instance, target, database, user)
            _limit(instance, user)
            directory.keep()
            return clone


def reusable(found: Iterable[Clone], target: RecoveryTarget) -> Clone | None:
    """Return the clone that shows a target; none shows the newest state any more."""
    return next((each for each in found if each.target == str(target) and target.kind != "latest"), None)


def list_clones(sandbox: Sandbox) -> list[Clone]:
    """Return the open clones, the oldest first."""
    found = [_read(each) for each in _directories(sandbox) if each.is_kept and each.processes()]
    return sorted((each for each in found if each), key=lambda clone: clone.opened)


def close_clones(sandbox: Sandbox, names: Collection[str]) -> list[str]:
    """End clones and remove their files; return their names.

    Raises:
        UnknownCloneError: there is none of a name; nothing was closed.
        BackupError: a process does not end.
    """
    directories = {each.name: each for each in _directories(sandbox) if each.is_kept}
    if unknown := sorted(set(names) - set(directories)):
        raise UnknownCloneError(
            f"there is no clone {unknown[0]}: open are {', '.join(directories) or 'none'}",
            remedy="`observatory backup flashback list` shows them.",
        )
    for name in sorted(names):
        directories[name].remove()
    return sorted(names)


def close_expired(sandbox: Sandbox) -> list[str]:
    """Close the clones that are open for too long, and remove what ended restores have left; return all names."""
    now = datetime.now(UTC)
    expired = [each.name for each in list_clones(sandbox) if each.closes <= now]
    closed = close_clones(sandbox, expired) if expired else []
    return [*closed, *remove_abandoned(sandbox)]


def close_all(sandbox: Sandbox) -> list[str]:
    """End every clone, also one that is being opened, and what ended restores have left; return all names."""
    directories = _directories(sandbox)
    for each in directories:
        each.remove()
    return [*(each.name for each in directories), *remove_abandoned(sandbox)]


def size_of(sandbox: Sandbox, clone: Clone) -> int:
    """Return the bytes that a clone takes on the disk."""
    root = ScratchDirectory(sandbox, clone.name).host
    return sum(_blocks(Path(folder, name)) for folder, _, names in os.walk(root) for name in names)


def _blocks(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return file.lstat().st_blocks * BLOCK
    return 0


def _directories(sandbox: Sandbox) -> list[ScratchDirectory]:
    return [each for each in scratch_directories(sandbox) if each.name.startswith(f"{KIND}-")]


def _limit(instance: RestoredInstance, user: str) -> None:
    """Limit the temporary files of a session, and admit no superuser, who could end the recovery and write."""
    directory = instance.directory
    quoted = user.replace('"', '""')
    with instance.connect() as connection:
        connection.execute(f"ALTER SYSTEM SET temp_file_limit = '{TEMPORARY_FILES}'".encode())
        directory.sandbox.write_file(f"{directory.inside}/hba.conf", f'local all "{quoted}" peer map=operators\n')
        connection.execute("SELECT pg_reload_conf()")


def _describe(
    directory: ScratchDirectory, instance: RestoredInstance, target: RecoveryTarget, database: str, user: str
) -> Clone:
    now = datetime.now(UTC)
    clone = Clone(
        name=directory.name,
        target=str(target),
        last_transaction=instance.replayed.last_transaction,
        opened=now,
        closes=now + OPEN_FOR,
        backup=instance.cover.label,
        repository=instance.cover.repository,
        database=database,
        user=user,
        port=instance.port,
        host=str(_reachable(directory, instance.port)),
    )
    text = json.dumps(asdict(clone), default=lambda value: value.isoformat())
    directory.sandbox.write_file(f"{directory.inside}/clone.json", text)
    return clone


def _read(directory: ScratchDirectory) -> Clone | None:
    """Return the description of a clone; None if it is being removed."""
    try:
        with directory.sandbox.open_read(f"{directory.inside}/clone.json") as file:
            fields = json.load(file)
    except FileNotFoundError:
        return None
    times = ("last_transaction", "opened", "closes")
    return Clone(**fields | {name: datetime.fromisoformat(fields[name]) if fields[name] else None for name in times})


def _reachable(directory: ScratchDirectory, port: int) -> Path:
    """Return a path of the socket's directory that is short enough for a socket: its own, or a symbolic link."""
    own = directory.host.absolute() / "run"
    if len(os.fsencode(own / f".s.PGSQL.{port}")) <= MAX_SOCKET_PATH:
        return own
    directory.link.symlink_to(own)
    return directory.link
