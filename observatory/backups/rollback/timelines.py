"""Timelines of data that is promoted beside the live server, which archives into the same repositories.

A promoted server must have a timeline that no archive has: two histories of one number would end archiving for ever.
The live server always has the newest timeline of the stack, because every promotion takes the one after the newest. So
a server that is promoted elsewhere gets a file for each timeline up to the live one, and takes the next.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from observatory.backups.rollback.errors import DatabaseRollbackError
from observatory.backups.target import parse_lsn
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import BIN
from observatory.nodes.pgbackrest import command as pgbackrest
from observatory.runtime import Sandbox
from observatory.runtime.bubblewrap import command
from observatory.runtime.processes import process_group
from observatory.runtime.sandbox import ENVIRONMENT
from observatory.waiting import wait_until

HELD = "1\t0/0\theld by a rollback of the database\n"  # a timeline's history has this form
END_SECONDS = 60.0  # of a killed server; afterwards PostgreSQL itself judges
PROMOTION_SECONDS = 300.0  # for the WAL since the last checkpoint, if the server was not shut down
PORT = "5432"  # of a socket in the data directory
LOG = "/srv/log/rollback.log"
FIRST = 1  # timeline of a new server, which has no history
SHUT_DOWN = ("shut down", "shut down in recovery")
_CONTROL = re.compile(r"(?m)^(Database cluster state|Latest checkpoint's (?:TimeLineID|REDO WAL file)):\s+(.+)$")
_WAL = re.compile(r"(?P<timeline>[0-9A-F]{8})(?:(?P<segment>[0-9A-F]{16})|\.history)")
_SETTINGS = {
    # The WAL is in the directory itself; nothing is read from an archive or written to one.
    "restore_command": "/bin/false",
    "archive_mode": "off",
    **{f"recovery_target{each}": "" for each in ("", "_lsn", "_name", "_time", "_xid")},
    "recovery_target_timeline": "current",
    "recovery_target_action": "promote",
    "hot_standby": "off",
    "listen_addresses": "",
    "port": PORT,
    "ssl": "off",
    "shared_preload_libraries": "timescaledb",
    "timescaledb.max_background_workers": "0",
    "autovacuum": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
}


@dataclass(frozen=True, kw_only=True)
class Control:
    """What pg_controldata reports: the server's state, its timeline, and the WAL segment of the last checkpoint."""

    state: str
    timeline: int
    segment: str

    @property
    def shut_down(self) -> bool:
        """Whether the server ended by a shutdown."""
        return self.state in SHUT_DOWN


@dataclass(frozen=True)
class DataDirectory:
    """A data directory of PostgreSQL that no server uses; `inside` is its path in the sandbox."""

    sandbox: Sandbox
    inside: str

    def control(self) -> Control:
        """Return the state of the last server.

        Raises:
            DatabaseRollbackError: pg_controldata cannot read it.
        """
        done = self.sandbox.run((f"{BIN}/pg_controldata", "-D", self.inside), check=False)
        found = dict(_CONTROL.findall(done.stdout))
        if done.returncode or len(found) < len(("state", "timeline", "segment")):
            place = self.sandbox.host_path(self.inside)
            raise DatabaseRollbackError(f"pg_controldata cannot read {place}: {(done.stderr or done.stdout).strip()}")
        return Control(
            state=found["Database cluster state"],
            timeline=int(found["Latest checkpoint's TimeLineID"]),
            segment=found["Latest checkpoint's REDO WAL file"],
        )

    def check_usable(self) -> None:
        """Check that PostgreSQL can start from what its last server has left, as far as a look at two files shows.

        Raises:
            DatabaseRollbackError: the directory, its control file or the WAL of its last checkpoint is missing.
        """
        place = self.sandbox.host_path(self.inside)
        if place.is_symlink() or not place.is_dir():
            raise DatabaseRollbackError(f"{place} is no directory any more")
        if not (file := place / "pg_wal" / self.control().segment).is_file():
            raise DatabaseRollbackError(f"{file} is missing, without which PostgreSQL cannot start")

    def take_history(self, timeline: int, live: DataDirectory) -> None:
        """Have the history of a timeline, of which the one that a promotion begins must name all ancestors.

        A repository that is younger than the timeline does not have it.

        Args:
            timeline: its number.
            live: the live data directory, which may descend from the timeline.

        Raises:
            DatabaseRollbackError: neither a repository nor the live directory has it.
        """
        name = f"{self.inside}/pg_wal/{timeline:08X}.history"
        if timeline == FIRST or self.sandbox.host_path(name).exists():
            return
        fetch = pgbackrest(Paths(), f"--pg1-path={self.inside}", "archive-get", name.rpartition("/")[2], name)
        if self.sandbox.run(fetch, check=False).returncode == 0:
            return
        ancestors = live.ancestors()
        if timeline not in (*ancestors, live.control().timeline):
            raise DatabaseRollbackError(f"no repository has the history of timeline {timeline}; nothing was changed")
        self.sandbox.write_file(name, "".join(line for number, line in ancestors.items() if number < timeline))

    def ancestors(self) -> dict[int, str]:
        """Return the lines of the history of the directory's timeline, by the ancestor that each names."""
        file = self.sandbox.host_path(f"{self.inside}/pg_wal/{self.control().timeline:08X}.history")
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
        return {int(line.split()[0]): line for line in lines if line.strip()}

    def descends_from(self, timeline: int, lsn: int) -> bool:
        """Return whether the directory's timeline has all of another one's WAL up to a position."""
        left = self.ancestors().get(timeline)
        return self.control().timeline == timeline or (left is not None and parse_lsn(left.split()[1]) >= lsn)

    @contextmanager
    def holding_timelines(self, after: int, newest: int) -> Iterator[None]:
        """Let a promotion from the timeline `after` take one after `newest` inside the block."""
        names = [f"{self.inside}/pg_wal/{number:08X}.history" for number in range(after + 1, newest + 1)]
        held = [name for name in names if not self.sandbox.host_path(name).exists()]
        for name in held:
            self.sandbox.write_file(name, HELD)
        try:
            yield
        finally:
            self._release_timelines()

    def _release_timelines(self) -> None:
        """Remove what holds timelines, also what a killed command has left."""
        for file in self.sandbox.host_path(f"{self.inside}/pg_wal").glob("*.history"):
            if file.read_bytes() == HELD.encode():
                self.sandbox.remove_file(f"{self.inside}/pg_wal/{file.name}")

    def promote(self, newest: int) -> None:
        """Recover to the end of the directory's WAL and promote to a timeline after `newest`, then shut down.

        Repeatable: a directory that has a later timeline and was shut down stays as it is, and one whose promotion was
        killed takes a further timeline.

        Raises:
            DatabaseRollbackError: the server does not start, does not end, or has not taken a later timeline.
        """
        self._release_timelines()
        control = self.control()
        if control.timeline > newest and control.shut_down:
            return
        with self.holding_timelines(control.timeline, newest):
            self.sandbox.write_file(f"{self.inside}/recovery.signal", "")
            self._run_until_promoted()
        self.check_promoted(newest)

    def check_promoted(self, newest: int) -> Control:
        """Check that the directory was promoted to a timeline after `newest` and shut down; return its state.

        Raises:
            DatabaseRollbackError: it was not.
        """
        control = self.control()
        if control.timeline <= newest or control.state != SHUT_DOWN[0]:
            raise DatabaseRollbackError(
                f"{self.sandbox.host_path(self.inside)} has timeline {control.timeline} and is {control.state!r}, "
                f"expected one after {newest} that is shut down",
            )
        return control

    def archive_later(self, newest: int) -> None:
        """Have the next server archive what was written on the timelines after `newest`, which had no archive.

        They are several if a promotion was killed: the timeline that it began is an ancestor of the last one.
        """
        control = self.control()
        for name in sorted(file.name for file in self.sandbox.host_path(f"{self.inside}/pg_wal").iterdir()):
            found = _WAL.fullmatch(name)
            if not found or not newest < int(found["timeline"], 16) <= control.timeline:
                continue
            if found["segment"] is None or found["segment"] < control.segment[8:]:
                self.sandbox.write_file(f"{self.inside}/pg_wal/archive_status/{name}.ready", "")

    def _run_until_promoted(self) -> None:
        """Run PostgreSQL without a network until it is promoted, and shut it down; an exception kills it."""
        wait_until(self._is_at_rest, END_SECONDS, interval_s=0.1)
        socket = ("-h", self.inside, "-p", PORT, "-U", "postgres", "-d", "postgres")
        query = (f"{BIN}/psql", "-XAt", *socket, "-c", "SELECT pg_is_in_recovery()")
        stop = (f"{BIN}/pg_ctl", "-D", self.inside, "-m", "fast", "-w", "stop")
        with (
            self.sandbox.open_append(LOG) as log,
            process_group(self._server(), env=ENVIRONMENT, stderr=log.fileno()) as server,
        ):
            wait_until(lambda: server.poll() is not None or self._prints(query, "f"), PROMOTION_SECONDS, interval_s=0.1)
            if self.sandbox.run(stop, check=False).returncode:
                raise DatabaseRollbackError(
                    f"PostgreSQL on {self.sandbox.host_path(self.inside)} was not promoted",
                    remedy=f"See {self.sandbox.host_path(LOG)}.",
                )

    def _is_at_rest(self) -> bool:
        """Return whether no server runs on the directory; one that was killed needs a moment to end."""
        try:
            server = int(self.sandbox.host_path(f"{self.inside}/postmaster.pid").read_text(encoding="utf-8").split()[0])
        except (FileNotFoundError, ValueError, IndexError):
            return True
        return not psutil.pid_exists(server)

    def _prints(self, argv: tuple[str, ...], line: str) -> bool:
        return self.sandbox.run(argv, check=False).stdout.strip() == line

    def _server(self) -> list[str]:
        sandbox = self.sandbox
        here = {
            "hba_file": f"{self.inside}/pg_hba.conf",
            "ident_file": f"{self.inside}/pg_ident.conf",
            "unix_socket_directories": self.inside,
        }
        options = [word for name, value in {**_SETTINGS, **here}.items() for word in ("-c", f"{name}={value}")]
        argv = [f"{BIN}/postgres", "-D", self.inside, *options]
        mounts = (
            *("--unshare-net", "--tmpfs", "/run", "--bind", str(sandbox.home), "/srv"),
            *("--chdir", "/srv", "--die-with-parent"),
        )
        return command(sandbox.rootfs, sandbox.entry, argv, mounts=mounts)
