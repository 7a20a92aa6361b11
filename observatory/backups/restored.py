"""A restored database beside the live one: PostgreSQL over a backup, stopped at a target, in a sandbox of its own.

The sandbox has no network and sees the stack's files read-only, with the live data and all sockets hidden; only its own
directory is writable. The server archives nothing and runs no jobs. It replays WAL to the target and pauses there, as a
hot standby that can be read.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import psycopg
from psycopg.conninfo import make_conninfo

from observatory.backups.cover import Cover, find_cover
from observatory.backups.pgbackrest import OTHER_BACKUP, PgBackRest
from observatory.backups.repository_contents import configured_repositories
from observatory.backups.scratch import ScratchDirectory
from observatory.backups.target import format_lsn, parse_lsn
from observatory.backups.tool import BackupError
from observatory.files.sockets import short_path
from observatory.nodes.pgbackrest import BIN
from observatory.runtime import RuntimeFault, Sandbox, bubblewrap
from observatory.runtime.processes import process_group
from observatory.runtime.sandbox import ENVIRONMENT
from observatory.waiting import poll

PORT = 5432  # of the socket in the private directory
POLL_S = 0.05
STOP_S = 60
LOG_LINES = 10
NOT_YET = "FATAL:  the database system is "  # starting up: the answer to each question whether it is ready
FAILURE = re.compile(r"\b(?:ERROR|FATAL|PANIC):")
SETTINGS = {
    # No archive, no network, no jobs, and no command of the backed up configuration.
    "archive_mode": "off",
    "archive_command": "",
    "archive_library": "",
    "archive_cleanup_command": "",
    "recovery_end_command": "",
    "primary_conninfo": "",
    "primary_slot_name": "",
    "synchronous_standby_names": "",
    "listen_addresses": "",
    "ssl": "off",
    "shared_preload_libraries": "timescaledb,pg_stat_statements",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "timescaledb.max_background_workers": "0",
    "timescaledb.telemetry_level": "off",
    "autovacuum": "off",
    # What it needs, and what it prints.
    "hot_standby": "on",
    "shared_buffers": "64MB",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_min_error_statement": "panic",
    "external_pid_file": "",
}
TARGETS = [f"recovery_target{each}" for each in ("", "_lsn", "_name", "_time", "_xid")]
# A standby needs as much of each as its primary had, by the name in pg_controldata.
AT_LEAST = {
    "max_connections": "max_connections",
    "max_worker_processes": "max_worker_processes",
    "max_wal_senders": "max_wal_senders",
    "max_prepared_xacts": "max_prepared_transactions",
    "max_locks_per_xact": "max_locks_per_transaction",
}
STATE = "SELECT pg_is_in_recovery() AND pg_get_wal_replay_pause_state() = 'paused', NOT pg_is_in_recovery()"
REPLAYED = "SELECT pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp()"


class RestoreError(BackupError):
    """A restore failed; the live data is as it was."""


class UnreadableSourceError(RestoreError):
    """The backup or its WAL does not lead to the target after all: a file of the repository is damaged or missing."""


OnOther = Callable[[str], None]  # gets the line that another repository is used, and why


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """How far a recovery went: the end of the last record, and the time of the last transaction, if there was one."""

    lsn: int
    last_transaction: datetime | None


@dataclass(kw_only=True)
class RestoredInstance:
    """A restored server. `cover` is where it stands.

    Attributes:
        directory: its files.
        cover: what it was restored by.
        durable: whether its files survive a crash of the machine, so that they can become the live data.
        port: of its socket.
    """

    directory: ScratchDirectory
    cover: Cover
    durable: bool = False
    detached: bool = False
    port: int = PORT
    _process: subprocess.Popen[bytes] | None = None
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def conninfo(self, dbname: str = "postgres") -> str:
        """Return the superuser's connection string; it is valid in this process only, and as long as the instance."""
        if "host" not in self.__dict__:
            self.__dict__["host"] = self._open.enter_context(short_path(self.directory.host / "run"))
        return make_conninfo(host=self.__dict__["host"], port=self.port, user="postgres", dbname=dbname)

    def connect(self, dbname: str = "postgres") -> psycopg.Connection:
        """Return a new connection of the superuser, in autocommit mode."""
        return psycopg.connect(self.conninfo(dbname), autocommit=True)

    def run(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program in the instance's own sandbox; PGHOST, PGPORT and PGUSER are set.

        Raises:
            RestoreError: it failed and `check` is set.
        """
        connection = {"PGHOST": f"{self.directory.inside}/run", "PGPORT": str(self.port), "PGUSER": "postgres"}
        return _run(self.directory, argv, env=connection, check=check)

    @property
    def replayed(self) -> Replayed:
        """How far the recovery went."""
        with self.connect() as connection:
            lsn, time = connection.execute(REPLAYED).fetchall()[0]
        return Replayed(lsn=parse_lsn(lsn), last_transaction=time)

    def advance(self, cover: Cover) -> None:
        """Replay on to another target, and pause there.

        Args:
            cover: of the new target, which is later on the same timeline; its backup is not used.

        Raises:
            RestoreError: the recovery fails. The instance is stopped.
        """
        self.stop()
        self.cover = cover
        self.start()

    def promote(self) -> None:
        """End the recovery: the instance can be written to. For instances that are thrown away.

        Raises:
            RestoreError: the server ends instead.
        """
        self.run([f"{BIN}/pg_ctl", "promote", "-D", self.directory.data, "--no-wait"])
        self._wait_until("promoted")

    def start(self, *, pause: bool = True) -> None:
        """Start the server, and return when the target is reached.

        Args:
            pause: at the target; otherwise the server is promoted there.

        Raises:
            RestoreError: the recovery fails; the message ends with the server's log.
        """
        given: Mapping[str, int] = {}
        while (needed := self._needed()) != given:  # WAL may change what a standby needs
            self.stop()
            given = needed
            self._launch(given, action="pause" if pause else "promote")
            state = self._await_state()
        if state == "ended":
            raise UnreadableSourceError(
                f"the restored database did not reach {self.cover.target}: {self._last_lines()}", remedy=OTHER_BACKUP
            )
        if pause and state == "promoted":
            raise RestoreError(
                f"the restored database cannot pause at {self.cover.target}: it is not consistent for readers there",
                remedy="Choose a target some seconds later.",
            )

    def stop(self) -> None:
        """Shut the server down. The directory stays until the end of its own block.

        Raises:
            RestoreError: the server does not end.
        """
        if self._process is None:
            return
        if self._process.poll() is None:
            _run(self.directory, [f"{BIN}/pg_ctl", "stop", "-D", self.directory.data, "-m", "fast", "-t", str(STOP_S)])
        self._process.wait(STOP_S)
        self._process = None

    def kill(self) -> None:
        """End the server at once, without a shutdown."""
        self.directory.end_processes()
        if self._process is not None:
            self._process.wait()
            self._process = None

    def release(self) -> None:
        """Leave a detached server to itself."""
        if self._process is not None:
            self._process.returncode = 0  # otherwise Python warns of a process that still runs
            self._process = None

    def close(self) -> None:
        """Give up the connection string."""
        self._open.close()

    def _launch(self, needed: Mapping[str, int], *, action: str) -> None:
        settings = {**SETTINGS, **{n: str(v) for n, v in needed.items()}, **self._own_settings(action)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self.directory.sandbox.write_file(f"{self.directory.data}/recovery.signal", "")
        with self.directory.sandbox.open_append(f"{self.directory.inside}/log") as log:
            self._process = subprocess.Popen(
                self.directory.sandboxed(
                    [f"{BIN}/postgres", "-D", self.directory.data, *options], attached=not self.detached
                ),
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _own_settings(self, action: str) -> dict[str, str]:
        cover, inside = self.cover, self.directory.inside
        tool = PgBackRest(self.directory.sandbox)
        follows = "current" if cover.timeline == cover.backup_timeline else str(cover.timeline)
        if cover.target.kind == "label":
            target = ("recovery_target", "immediate")
        else:
            target = ("recovery_target_lsn", format_lsn(cover.stop))
        return {
            "port": str(self.port),
            "unix_socket_directories": f"{inside}/run",
            "hba_file": f"{inside}/hba.conf",
            "ident_file": f"{inside}/ident.conf",
            "fsync": "on" if self.durable else "off",
            "restore_command": tool.restore_command(cover.repository, directory=self.directory.data),
            "recovery_target_timeline": follows,
            "recovery_target_action": action,
            "recovery_target_inclusive": "on" if cover.inclusive else "off",
            **{each: "" for each in TARGETS if each != target[0]},
            target[0]: target[1],  # the last: with a target, PostgreSQL takes no other one, not even an empty one
        }

    def _needed(self) -> dict[str, int]:
        """Return the settings that a standby of this data needs at least."""
        text = _run(self.directory, [f"{BIN}/pg_controldata", "-D", self.directory.data]).stdout
        found = {name: int(number) for name, number in re.findall(r"^(\w+) setting: +(\d+)$", text, re.MULTILINE)}
        return {setting: found[name] for name, setting in AT_LEAST.items()}

    def _await_state(self) -> str:
        return poll(self._state, until=bool, timeout_s=float("inf"), interval_s=POLL_S)

    def _wait_until(self, wanted: str) -> None:
        state = poll(
            self._state, until=lambda each: each in {wanted, "ended"}, timeout_s=float("inf"), interval_s=POLL_S
        )
        if state != wanted:
            raise RestoreError(f"the restored database ended: {self._last_lines()}")

    def _state(self) -> str:
        """Return `paused`, `promoted` or `ended`; empty while it replays."""
        if self._process is None or self._process.poll() is not None:
            return "ended"
        with contextlib.suppress(psycopg.Error), self.connect() as connection:
            paused, promoted = connection.execute(STATE).fetchall()[0]
            return "paused" if paused else "promoted" if promoted else ""
        return ""

    def _last_lines(self) -> str:
        with self.directory.sandbox.open_read(f"{self.directory.inside}/log") as log:
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])


@contextlib.contextmanager
def restored_instance(
    cover: Cover,
    *,
    directory: ScratchDirectory,
    pause: bool = True,
    durable: bool = False,
    detached: bool = False,
    port: int = PORT,
    on_other: OnOther | None = None,
) -> Iterator[RestoredInstance]:
    """Restore a backup into a directory, and run PostgreSQL on it inside the block, at the target of the cover.

    Args:
        cover: that `find_cover` returned.
        directory: that `scratch_directory` created.
        pause: at the target, as a hot standby; otherwise the server is promoted there, without archiving.
        durable: write the files so that they survive a crash of the machine; needed where they become the live data.
        detached: the server outlives the block if the directory is kept.
        port: of its socket.
        on_other: called before the target is restored from another repository, where that of the cover turns out to be
            damaged; the instance's own cover says which one it is from. None: that repository only.

    Raises:
        RestoreError: the restore or the recovery fails; the live data is as it was.
    """
    of_cover = partial(RestoredInstance, directory=directory, durable=durable, detached=detached, port=port)
    instance = of_cover(cover=cover)
    try:
        try:
            _restore_and_start(instance, pause=pause)
        except UnreadableSourceError as error:
            if on_other is None:
                raise
            instance.kill()
            instance.close()
            directory.clear()
            instance = of_cover(cover=_other_cover(directory.sandbox, cover, error, on_other))
            _restore_and_start(instance, pause=pause)
        yield instance
    finally:
        if detached and directory.is_kept:
            instance.release()
        else:
            instance.kill()
        instance.close()


def _restore_and_start(instance: RestoredInstance, *, pause: bool) -> None:
    _restore(instance.directory, instance.cover)
    instance.start(pause=pause)


def _other_cover(sandbox: Sandbox, cover: Cover, error: UnreadableSourceError, on_other: OnOther) -> Cover:
    """Return the cover of the same target by another repository; raises the error if no other one leads to it."""
    for number in configured_repositories(sandbox):
        if number != cover.repository:
            with contextlib.suppress(RuntimeFault):
                other = find_cover(sandbox, cover.target, repository=number)
                on_other(
                    f"{cover.label} in repository {cover.repository} cannot be restored ({_cause(error)}): restoring "
                    f"{other.label} from repository {number} instead, about {other.estimated_s:.0f} s"
                )
                return other
    raise error


def _cause(error: RestoreError) -> str:
    """Return the line of a message that says what failed: pgBackRest's or PostgreSQL's first error."""
    lines = str(error.args[0]).splitlines()
    found = [line for line in lines if FAILURE.search(line) and NOT_YET not in line]
    return (found or lines)[0].strip()


def _restore(directory: ScratchDirectory, cover: Cover) -> None:
    sandbox, inside = directory.sandbox, directory.inside
    for name in ("postgres", "run"):
        sandbox.make_directory(f"{inside}/{name}")
    sandbox.write_file(f"{inside}/hba.conf", "local all all peer map=operators\n")
    sandbox.write_file(f"{inside}/ident.conf", f"operators {bubblewrap.USER} all\noperators root all\n")
    tool = PgBackRest(sandbox, within=partial(_run, directory, check=False))
    try:
        tool.restore(cover.label, repository=cover.repository, directory=directory.data)
    except BackupError as error:
        raise UnreadableSourceError(f"{cover.label} was not restored: {error.args[0]}", remedy=error.remedy) from error


def _run(
    directory: ScratchDirectory, argv: Sequence[str], *, env: Mapping[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command in a directory's sandbox; an exception here, such as an interrupt, kills it."""
    words = directory.sandboxed(argv)
    with process_group(words, env={**ENVIRONMENT, **(env or {})}) as process:
        output, errors = process.communicate()
    if check and process.returncode:
        last = "\n".join((output + errors).splitlines()[-LOG_LINES:])
        raise RestoreError(f"{argv[0]} in {directory.host} failed with exit status {process.returncode}:\n{last}")
    return subprocess.CompletedProcess(words, process.returncode, output, errors)
