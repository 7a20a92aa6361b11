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
from functools import partial
from pathlib import Path
from subprocess import Popen

from psycopg.conninfo import make_conninfo

from observatory.backups.archived_wal import BaseBackup
from observatory.backups.dump_server import check_space
from observatory.backups.pgbackrest import PgBackRest
from observatory.backups.repository_contents import RepositoryContents
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
from observatory.nodes.programs.backup_repository import position
from observatory.runtime import Sandbox, bubblewrap
from observatory.runtime.processes import process_group
from observatory.runtime.sandbox import ENVIRONMENT
from observatory.settings import LocalSettings
from observatory.waiting import wait_until

DATA = f"{Paths().data}/postgres"
NUMBER = 1  # of the repository that the copy becomes
INFO_FILES = tuple(f"{place}/{STANZA}/{place}.info" for place in ("backup", "archive"))
SEGMENT = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})-[0-9a-f]{40}(\.\w+)?")
PARTS = ("archive", "backup", "audit")  # of a repository
LATEST = f"backup/{STANZA}/latest"  # pgBackRest's link to the newest backup
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
    found = _unlock(sandbox, copy, passphrases, settings)
    largest = max((each.database_bytes for each in found), default=0)
    check_space([(sandbox.home, _size(copy) + largest, "the copy and the database")])
    report("copy the repository")
    _copy(copy, sandbox)
    backup = _newest(sandbox, found, copy)
    newest = _newest_segment(sandbox)
    report(f"restore the backup {backup.label}")
    sandbox.make_directory(DATA)
    try:
        PgBackRest(sandbox).restore(backup.label, repository=NUMBER, directory=DATA)
    except BackupError as error:
        raise BackupError(str(error.args[0]), remedy=OTHER_COPY) from error
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
    # What a link points to would be left out, or is not of the repository.
    if links := sorted(str(each.relative_to(copy)) for each in _parts(copy) if each.is_symlink()):
        raise RecoveryRefusedError(
            f"{copy} has a link, and a repository has none: {links[0]}",
            remedy="Copy what the links point to, as `cp -aL` does.",
        )


def _parts(copy: Path) -> Iterator[Path]:
    """Yield what is copied: the files and directories of a repository, without the link to its newest backup.

    A copy may have that backup again in place of the link, where pgBackRest could make no other backup.
    """
    for part in (copy / each for each in PARTS):
        yield from (each for each in (part, *part.rglob("*")) if not each.is_relative_to(copy / LATEST))


def _unlock(sandbox: Sandbox, copy: Path, passphrases: Mapping[int, str], settings: LocalSettings) -> list[Backup]:
    """Configure the copy's passphrase, and return its backups; only the information files are copied."""
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
        return found
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


def _newest(sandbox: Sandbox, found: Collection[Backup], copy: Path) -> Backup:
    """Return the newest backup from which a recovery leads to the newest timeline.

    One that was made before a rollback may not lead there, and a copy that was made meanwhile may lack files of it.
    """
    contents, reasons = RepositoryContents(sandbox, NUMBER), []
    by_label = {each.label: each for each in found}
    for base in contents.backups:
        backup = by_label[base.label]
        if reason := _obstacle(contents, base, backup.wal_stop):
            reasons.append(f"{base.label}: {reason}")
        else:
            return backup
    why = "; ".join(reasons) or "there is none without damaged pages"
    raise RecoveryRefusedError(f"{copy} has no backup that leads to its newest timeline: {why}", remedy=OTHER_COPY)


def _obstacle(contents: RepositoryContents, base: BaseBackup, wal_stop: str) -> str:
    """Return why no recovery from a backup leads to the newest timeline; empty where one does."""
    archive = contents.wal.archive
    # PostgreSQL would end before it in silence, and begin a timeline that the archive has already.
    if unknown := archive.unknown_timelines(base.start[0] + 1):
        return f"{unknown[0]:08X}.history is missing or damaged"
    if archive.is_left(base.start[0], base.stop):
        return f"a rollback has left timeline {base.start[0]} before its end"
    end = position(wal_stop, archive.segment_bytes)
    # The last segment may exist only as the copy that begins the next timeline.
    if not any(number == end[1] and timeline >= end[0] for timeline, number in archive.files):
        return f"WAL segment {wal_stop} is missing"
    return f"{lost} is missing or truncated" if (lost := contents.missing(base)) else ""


def _size(copy: Path) -> int:
    return sum(each.lstat().st_size for each in _parts(copy) if each.exists())


def _copy(copy: Path, sandbox: Sandbox) -> None:
    place = repository(Paths(), NUMBER)
    sandbox.remove_file(place)
    sandbox.make_directory(place)
    try:
        for part in (each for each in PARTS if (copy / each).is_dir()):
            shutil.copytree(
                copy / part, sandbox.host_path(place) / part, symlinks=True, ignore=partial(_left_out, copy)
            )
    except (OSError, shutil.Error) as error:
        raise RecoveryRefusedError(f"{copy} cannot be copied: {error}", remedy=OTHER_COPY) from None
    sandbox.adopt(place)


def _left_out(copy: Path, directory: str, names: list[str]) -> set[str]:
    return {each for each in names if Path(directory, each) == copy / LATEST}


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
