"""Recovers a database on a machine that has nothing but a copy of one backup repository and its passphrase.

Everything happens in a home of its own, which takes the place of the stack's home at the end. Owns the copy, the
recovery to the end of the archived WAL, and the start of the new timeline in the archive. The next `up` makes the rest.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from psycopg.conninfo import make_conninfo

from observatory.backups.dump_server import check_space
from observatory.backups.pgbackrest import PgBackRest
from observatory.backups.tool import Backup, BackupError, RepositoryUnreadableError
from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors
from observatory.database.errors import UnreachableError
from observatory.database.migration_session import server_edition
from observatory.errors import REFUSED
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import (
    BIN,
    REPOSITORIES,
    STANZA,
    archive_command,
    cipher_file,
    cipher_section,
    pgbackrest_directories,
    pgbackrest_files,
    repository,
    restore_command,
)
from observatory.nodes.postgres import shared_parameters
from observatory.runtime import Sandbox, bubblewrap
from observatory.runtime.processes import process_group
from observatory.runtime.sandbox import ENVIRONMENT
from observatory.settings import LocalSettings
from observatory.waiting import wait_until

DATA = f"{Paths().data}/postgres"
NUMBER = 1  # of the repository that the copy becomes
INFO_FILES = tuple(f"{place}/{STANZA}/{place}.info" for place in ("backup", "archive"))
SEGMENT = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})-[0-9a-f]{40}(\.\w+)?")
POLL_S = 0.2
PASSPHRASE_BYTES = 32
STOP_S = 600
LOG_LINES = 10
OTHER_COPY = "Use a complete copy of a repository of the stack, with its backup and archive directories."
_LEDGER = "SELECT version FROM observatory.schema_migrations WHERE statements_done = statements_total ORDER BY version"
_TIMELINE = """
    SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8), setting::bigint FROM pg_settings
    WHERE name = 'wal_segment_size'
"""
# Written by a backup's restore or by ALTER SYSTEM on the lost machine; `up` declares them.
_OWN = ("archive_mode", "archive_command", "restore_command", "listen_addresses", "port", "unix_socket_directories")


class RecoveryRefusedError(BackupError):
    """The copy of the repository cannot be recovered from; nothing was changed."""

    exit_code = REFUSED


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """A recovered database.

    Attributes:
        label: of the backup.
        database_bytes: its size.
        end: WAL position at which the recovery ended.
        migrations: numbers of the applied migrations.
    """

    label: str
    database_bytes: int
    end: str
    migrations: tuple[int, ...]


def recover(
    sandbox: Sandbox,
    copy: Path,
    *,
    passphrases: Mapping[int, str],
    settings: LocalSettings,
    known: Collection[int],
    accept_gap: bool = False,
    report: Callable[[str], None] = lambda _step: None,
) -> Recovered:
    """Fill an empty home with the database of a repository's copy, recovered to the end of its WAL, and the copy.

    Args:
        sandbox: over the empty home.
        copy: directory of the repository's copy, which is only read.
        passphrases: of the repositories; the one that fits is used.
        settings: of the stack.
        known: numbers of the checkout's migrations.
        accept_gap: end at a gap in the archived WAL, which loses everything after it.
        report: gets each step.

    Raises:
        RecoveryRefusedError: see its class.
        BackupError: a file of the copy is damaged or missing, or the recovery failed.
        DatabaseError: the recovered database cannot be used.
    """
    report("read the repository")
    _check_copy(copy)
    backup = _unlock(sandbox, copy, passphrases, settings)
    check_space([(sandbox.home, _size(copy) + backup.database_bytes, "the copy and the database")])
    report("copy the repository")
    _copy(copy, sandbox)
    newest = _newest_segment(sandbox)
    report(f"restore the backup {backup.label}")
    sandbox.make_directory(DATA)
    PgBackRest(sandbox).restore(backup.label, repository=NUMBER, directory=DATA)
    PgBackRest(sandbox).prepare(running=False)  # a failed attempt to archive would be repeated a minute later
    sandbox.write_file(f"{DATA}/recovery.signal", "")
    report("replay the WAL")
    with started(sandbox, settings) as conninfo:
        end = _check_end(sandbox, conninfo, newest, accept_gap=accept_gap)
        migrations = _check_database(conninfo, settings.database.name, known)
        report("archive the new timeline")
        _archive(sandbox, conninfo)
    return Recovered(label=backup.label, database_bytes=backup.database_bytes, end=end, migrations=migrations)


def _check_copy(copy: Path) -> None:
    """Check that a directory is a repository of this project, before any of it is read."""
    for name in INFO_FILES:
        if not any((copy / each).is_file() for each in (name, f"{name}.copy")):
            raise RecoveryRefusedError(f"{copy} is no backup repository: it has no {name}", remedy=OTHER_COPY)


def _unlock(sandbox: Sandbox, copy: Path, passphrases: Mapping[int, str], settings: LocalSettings) -> Backup:
    """Configure the copy's passphrase, and return its newest sound backup; only the information files are copied."""
    for path, text in pgbackrest_files(settings, Paths()).items():
        sandbox.write_file(path, text)
    for directory in pgbackrest_directories(settings, Paths()):
        sandbox.make_directory(directory)
    for name in INFO_FILES:
        for each in (name, f"{name}.copy"):
            with contextlib.suppress(FileNotFoundError):
                sandbox.write_file(f"{repository(Paths(), NUMBER)}/{each}", (copy / each).read_bytes())
    reasons = []
    for number, passphrase in passphrases.items():
        sandbox.write_file(cipher_file(Paths(), NUMBER), cipher_section(passphrase, NUMBER))
        try:
            found = PgBackRest(sandbox).info(NUMBER)
        except RepositoryUnreadableError as error:
            reasons.append(f"with the passphrase of repository {number}: {str(error).splitlines()[0]}")
            continue
        _configure_others(sandbox, [other for other in passphrases.values() if other != passphrase])
        return _newest(found, copy)
    raise RecoveryRefusedError(
        f"{copy} cannot be read by any passphrase of the key file: {'; '.join(reasons)}",
        remedy="The key file is of another stack, or the information files are damaged. Use the key file of this stack "
        "or another copy.",
    )


def _configure_others(sandbox: Sandbox, passphrases: list[str]) -> None:
    """Give the repositories that begin empty the passphrases that are left, so that the key file stays valid."""
    for number in REPOSITORIES:
        if number != NUMBER:
            passphrase = passphrases.pop(0) if passphrases else secrets.token_urlsafe(PASSPHRASE_BYTES)
            sandbox.write_file(cipher_file(Paths(), number), cipher_section(passphrase, number))


def _newest(backups: Collection[Backup], copy: Path) -> Backup:
    sound = [each for each in backups if not each.damaged]
    if not sound:
        raise RecoveryRefusedError(f"{copy} has no backup without damaged pages", remedy=OTHER_COPY)
    return max(sound, key=lambda each: each.ended)


def _size(copy: Path) -> int:
    return sum(each.lstat().st_size for each in copy.rglob("*"))


def _copy(copy: Path, sandbox: Sandbox) -> None:
    place = repository(Paths(), NUMBER)
    sandbox.remove_file(place)
    try:
        shutil.copytree(copy, sandbox.host_path(place), symlinks=True)
    except (OSError, shutil.Error) as error:
        raise RecoveryRefusedError(f"{copy} cannot be copied: {error}", remedy=OTHER_COPY) from None
    sandbox.adopt(place)


def _newest_segment(sandbox: Sandbox) -> tuple[int, int, int] | None:
    """Return the newest archived WAL segment of the newest database system: timeline, and the parts of its position."""
    systems = sandbox.host_path(f"{repository(Paths(), NUMBER)}/archive/{STANZA}").glob("*-*/")
    newest = max(systems, key=lambda each: int(each.name.rpartition("-")[2]), default=None)
    found = [SEGMENT.fullmatch(each.name) for each in newest.glob("*/*")] if newest else []
    numbers = [(int(each[1], 16), int(each[2], 16), int(each[3], 16)) for each in found if each]
    return max(numbers, default=None)


@contextlib.contextmanager
def started(sandbox: Sandbox, settings: LocalSettings) -> Iterator[str]:
    """Run PostgreSQL until it has recovered and is promoted, and inside the block; shut it down cleanly at its end.

    It ends with this process, accepts connections on its socket only, and runs no jobs.

    Yields:
        The superuser's connection string, without a database.
    """
    socket = Paths().postgres_socket
    sandbox.make_directory(socket)
    options = {
        **shared_parameters(settings),
        "port": settings.ports.postgres,
        "listen_addresses": "",
        "unix_socket_directories": socket,
        "ssl": "off",
        "shared_preload_libraries": "timescaledb",
        "timescaledb.max_background_workers": 0,
        "timescaledb.telemetry_level": "off",
        "autovacuum": "off",
        "hot_standby": "off",  # it need not fit the settings of the lost machine then
        "archive_mode": "on",
        "archive_command": archive_command(Paths()),
        "restore_command": restore_command(Paths(), NUMBER),
        "recovery_target_timeline": "latest",
        **{f"recovery_target{each}": "" for each in ("", "_lsn", "_name", "_time", "_xid")},
        "logging_collector": "off",
        "log_destination": "stderr",
    }
    words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    host = str(sandbox.host_path(socket))
    conninfo = make_conninfo(host=host, port=settings.ports.postgres, user="postgres")
    with _running(sandbox, [f"{BIN}/postgres", "-D", DATA, *words]) as (process, log):
        wait_until(lambda: process.poll() is not None or _answers(conninfo), float("inf"), interval_s=POLL_S)
        if process.poll() is not None:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
            raise BackupError(f"PostgreSQL did not recover:\n{last}", remedy=OTHER_COPY)
        yield conninfo
        sandbox.run([f"{BIN}/pg_ctl", "stop", "-D", DATA, "-m", "fast", "-w", "-t", str(STOP_S)])


@contextlib.contextmanager
def _running(sandbox: Sandbox, command: list[str]) -> Iterator[tuple[Popen[str], Path]]:
    """Run a program of the sandbox as a part of this process; yields it and its log."""
    mounts = ("--tmpfs", "/run", "--bind", str(sandbox.home), "/srv", "--chdir", "/srv", "--die-with-parent")
    log = sandbox.host_path("/srv/log/recovery.log")
    whole = bubblewrap.command(sandbox.rootfs, sandbox.entry, command, mounts=mounts)
    with log.open("w") as output, process_group(whole, env=ENVIRONMENT, stderr=output.fileno()) as process:
        yield process, log


def _answers(conninfo: str) -> bool:
    try:
        with connect(make_conninfo(conninfo, dbname="postgres"), purpose="recovery"):
            return True
    except UnreachableError:
        return False


def _check_end(sandbox: Sandbox, conninfo: str, newest: tuple[int, int, int] | None, *, accept_gap: bool) -> str:
    """Return where the recovery ended, which is not before the newest archived segment.

    PostgreSQL takes a segment that is missing for the end of the WAL.
    """
    with connect(make_conninfo(conninfo, dbname="postgres"), purpose="recovery") as connection:
        timeline, size = connection.execute(_TIMELINE).fetchone() or ("", 1)
    with sandbox.open_read(f"{DATA}/pg_wal/{timeline}.history") as file:
        end = file.read().decode().split("\n")[-2].split("\t")[1]
    high, low = (int(part, 16) for part in end.split("/"))
    if newest and not accept_gap:
        start = (newest[1] << 32) + newest[2] * size
        if (high << 32) + low <= start:
            name = "".join(f"{part:08X}" for part in newest)
            raise RecoveryRefusedError(
                f"the archived WAL of the copy has a gap: the recovery ends at {end}, and the copy has WAL up "
                f"to {name}",
                remedy="Use another copy. Or accept the loss of everything after that position: --accept-gap.",
            )
    return end


def _check_database(conninfo: str, name: str, known: Collection[int]) -> tuple[int, ...]:
    """Return the applied migrations of a database that this machine and this checkout can run."""
    place = "the recovered database"
    with connect(make_conninfo(conninfo, dbname="postgres"), purpose="recovery") as connection:
        names = [found for (found,) in connection.execute("SELECT datname FROM pg_database").fetchall()]
        if name not in names:
            raise RecoveryRefusedError(
                f"the repository has no database {name}, only {', '.join(sorted(names))}",
                remedy="Name it in the settings: database.name.",
            )
    own = make_conninfo(conninfo, dbname=name)
    with connect(own, purpose="recovery") as connection, translate_errors(place):
        server_edition(connection, own)
        if connection.execute("SELECT to_regclass('observatory.schema_migrations')").fetchone() == (None,):
            return ()
        migrations = tuple(version for (version,) in connection.execute(_LEDGER).fetchall())
    if newer := sorted(set(migrations) - set(known)):
        raise RecoveryRefusedError(
            f"the database has migrations that this checkout lacks: {', '.join(map(str, newer))}",
            remedy="Use a checkout of the version that ran on the lost machine, or a newer one.",
        )
    return migrations


def _archive(sandbox: Sandbox, conninfo: str) -> None:
    """Archive the start of the new timeline in every repository."""
    with connect(make_conninfo(conninfo, dbname="postgres"), purpose="recovery") as connection:
        for name in _OWN:
            connection.execute(f"ALTER SYSTEM RESET {name}".encode())
        connection.execute("CHECKPOINT")
    tool = PgBackRest(sandbox)
    for number in tool.repositories:
        tool.archive_wal(number)
