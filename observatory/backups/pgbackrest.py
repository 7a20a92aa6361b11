"""Backups of the `local` stack's database: runs pgBackRest in the stack's sandbox.

Implements `observatory.backups.tool`. `observatory.nodes.pgbackrest` configures pgBackRest;
`observatory.nodes.programs.backup_repository` finds what a repository lacks.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from observatory.backups.tool import (
    Backup,
    BackupDamagedError,
    BackupError,
    BackupRunningError,
    BackupType,
    OtherDatabaseError,
    RepositoryUnreadableError,
    RepositoryUnwritableError,
)
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import (
    cipher_file,
    command,
    outside_repository,
    repository,
    restore_command,
    settings_file,
)
from observatory.nodes.programs.backup_repository import (
    LEAST_BYTES,
    SEGMENT,
    SEGMENT_NAME,
    STANZA,
    Finding,
    Node,
    Report,
    check,
    check_contents,
    describe_damage,
    expire,
    nodes_of,
    read_stanza,
    records,
)
from observatory.runtime import Sandbox, mounts
from observatory.waiting import wait_until

OTHER_DATABASE = (28, 51)  # pgBackRest's exit statuses when the repository and the database have other identifiers
UNREADABLE = (29, 95)  # those of a file with another format, and of one that was encrypted with another passphrase
LOCKED = 50  # pgBackRest's exit status when another process holds the stanza's lock (src/build/error/error.yaml)
OTHER_BACKUP = (
    "If a file is damaged, another repository or an earlier backup may be sound: `observatory backup list` shows them, "
    "and `observatory backup verify --contents` names damaged files."
)
LEAST_FREE_BYTES = 32 << 20  # two WAL segments
QUERY_TIMEOUT_S = 60  # of commands that copy no data
LAST_LINES = 10
GIVE_UP = "move {what} away and run `observatory up`, which makes a new repository with a full backup."
# Without WAL since the last switch, the position is the start of the next segment, which is not archived.
SWITCH = "SELECT pg_walfile_name(pg_switch_wal() - 1)"

_TYPES = {BackupType.FULL: "full", BackupType.DIFFERENTIAL: "diff", BackupType.INCREMENTAL: "incr"}


@dataclass(frozen=True)
class PgBackRest:
    """Implements `observatory.backups.tool.BackupTool` for the stack in `sandbox`.

    `within` runs a command line in another sandbox over the stack's files; None: in the stack's.
    """

    sandbox: Sandbox
    within: Callable[[Sequence[str]], subprocess.CompletedProcess[str]] | None = None

    @property
    def repositories(self) -> tuple[int, ...]:
        """The numbers of the repositories that `up` has configured."""
        return tuple(self._nodes())

    def prepare(self, *, running: bool = True) -> None:
        """Create the stanza in every repository; an existing one stays."""
        self._run("stanza-create", *(() if running else ("--no-online",)), timeout=QUERY_TIMEOUT_S)

    def archive_wal(self, repository: int) -> None:
        """Switch to a new WAL segment, and wait until the repository has the one before.

        Not by pgBackRest's `check`, which needs every repository.
        """
        node = self.node(repository)
        segment = node.query(SWITCH)
        if not SEGMENT_NAME.fullmatch(segment):
            raise BackupError("PostgreSQL does not answer, so its WAL cannot be archived")
        if not wait_until(lambda: _has_segment(node, segment), QUERY_TIMEOUT_S, interval_s=0.2):
            raise BackupError(
                f"WAL segment {segment} was not archived to repository {repository} within {QUERY_TIMEOUT_S} s",
                remedy="See `observatory backup verify`, and pgBackRest's messages: `observatory logs patroni`.",
            )

    def backup(self, kind: BackupType, *, repository: int, timeout: float | None = None) -> Backup:
        """Make a backup and return it; a full one where there is none to build on. Then earlier ones may expire."""
        self._check_writable(repository)  # pgBackRest would wait for WAL that cannot be archived
        try:
            output = self._run("backup", f"--type={_TYPES[kind]}", repository=repository, timeout=timeout)
        except BackupError:
            self._check_writable(repository)
            raise
        label = next(iter(re.findall(r"new backup label = (\S+)", output)), None)
        backup = next((each for each in self.info(repository) if each.label == label), None)
        if backup is None:
            raise BackupError(
                f"pgbackrest backup succeeded, but repository {repository} lacks its backup:\n{_last_lines(output)}"
            )
        if backup.damaged:
            damage = describe_damage(self.node(repository), backup.label)
            raise BackupDamagedError(
                f"the backup {backup.label} in repository {repository} contains damaged pages: {damage}",
                remedy="It is kept, and earlier backups do not expire until a sound full one exists. Repair the "
                "database: see docs/runbooks/StorageBackupDamaged.md.",
            )
        self.expire(repository)
        return backup

    def _check_writable(self, number: int) -> None:
        """Check that a repository's disk is neither read-only nor full.

        Raises:
            RepositoryUnwritableError: it is.
        """
        self.node(number)
        place = self.place(number)
        if not place.is_dir():
            return  # pgBackRest's error says more
        disk = os.statvfs(place)
        free = disk.f_bavail * disk.f_frsize
        if disk.f_flag & os.ST_RDONLY:
            raise RepositoryUnwritableError(
                f"backup repository {number} ({place}) is read-only",
                remedy="Mount it with write access. Until then WAL waits: see `observatory status`.",
            )
        if free < LEAST_FREE_BYTES:
            raise RepositoryUnwritableError(
                f"backup repository {number} ({place}) is full: its disk has {free / 2**20:.1f} MiB left",
                remedy="Free space on the disk, or enlarge it. Until then WAL waits: see `observatory status`.",
            )

    def restore(self, label: str, *, repository: int, directory: str) -> None:
        """Copy the files of a backup into an empty directory, a path of the sandbox."""
        # Without --type=none pgBackRest writes settings of a recovery, which the caller owns.
        place = (f"--pg1-path={directory}", f"--tablespace-map-all={directory}-tablespaces")  # and not the live ones
        options = (f"--set={label}", *place, "--type=none", "--archive-mode=off")
        self._run("restore", *options, repository=repository, timeout=None)

    def restore_command(self, repository: int, *, directory: str | None = None) -> str:
        """Return PostgreSQL's restore_command that reads WAL from the repository."""
        return restore_command(Paths(), repository, directory)

    def verify(self, repository: int, *, label: str | None = None, contents: bool = False) -> Report:
        """Return what is wrong with the repository, and which backups cannot be restored to the present."""
        node = self.node(repository)
        report = check(node)
        if label is not None:
            return Report(findings=tuple(self._of_backup(node, label, report, contents=contents)))
        return replace(report, contents=tuple(check_contents(node))) if contents else report

    def info(self, repository: int | None = None) -> list[Backup]:
        """Return the finished backups of a repository, or of all, oldest first."""
        nodes = self._nodes() if repository is None else {repository: self.node(repository)}
        found = []
        for number, node in nodes.items():
            stanza, error = read_stanza(node)
            if error:
                raise self.unreadable(number, error)
            found += [_backup(number, record) for record in records(stanza)]
        return sorted(found, key=lambda backup: backup.ended)

    def expire(self, repository: int) -> None:
        """Remove the backups older than the retention, and their WAL."""
        if failure := expire(self.node(repository), days=self.settings()["retention_days"]):
            raise BackupError(failure)

    def exists(self, number: int) -> bool:
        """Return whether a repository has files of pgBackRest."""
        return has_backups(self.place(number))

    def place(self, number: int) -> Path:
        """Return the directory of a repository on this machine."""
        outside = mounts.recorded(self.sandbox.home).get(outside_repository(number))
        return outside or self.sandbox.host_path(repository(Paths(), number))

    def give_up(self, number: int) -> str:
        """Return how the backups of a repository are given up."""
        place = self.place(number)
        outside = outside_repository(number) in mounts.recorded(self.sandbox.home)
        return GIVE_UP.format(what=f"{place}/archive and {place}/backup" if outside else place)

    def unreadable(self, number: int, reason: str) -> RepositoryUnreadableError:
        """Return the error for a repository that pgBackRest cannot read, with the way out."""
        place, passphrase = self.place(number), self.sandbox.host_path(cipher_file(Paths(), number))
        return RepositoryUnreadableError(
            f"the backup repository {place} cannot be read: {reason}",
            remedy="Another passphrase may have encrypted it, or its files are damaged. Restore them or the passphrase "
            f"({passphrase}). Or give these backups up: {self.give_up(number)}",
        )

    def settings(self) -> dict[str, Any]:
        """Return the settings of the repositories, which `up` writes.

        Raises:
            BackupError: the stack has none yet.
        """
        file = self.sandbox.host_path(settings_file(Paths()))
        try:
            settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BackupError(f"{file} does not exist", remedy="Run `observatory up`, which writes it.") from None
        return settings

    def _nodes(self) -> dict[int, Node]:
        return nodes_of(self.settings(), partial(_run, self.sandbox))

    def node(self, number: int) -> Node:
        """Return the machine with a repository, for `observatory.nodes.programs.backup_repository`.

        Raises:
            BackupError: there is no such repository.
        """
        nodes = self._nodes()
        if number not in nodes:
            there = " and ".join(map(str, nodes))
            raise BackupError(f"there is no backup repository {number}", remedy=f"The stack has {there}.")
        return nodes[number]

    def _of_backup(self, node: Node, label: str, report: Report, *, contents: bool) -> list[Finding]:
        """Return what is wrong with one backup, with those that it builds on and their WAL."""
        if label in report.obstacles:
            return [Finding("backup", report.obstacles[label], repository=node.repository)]
        if not contents:
            return []
        # The exit status is 0 whatever pgBackRest finds, so the output decides. It also calls a backup valid that
        # builds on a damaged one, so the whole chain and its WAL must be free of errors.
        options = (f"--set={label}", "--output=text", "--verbose")
        output = self._run("verify", *options, repository=node.repository, timeout=None)
        if f"backup: {label}, status: valid" in output and "status: error" not in output:
            return []
        return [Finding("backup", _last_lines(output), repository=node.repository)]

    def _run(self, name: str, *options: str, repository: int | None = None, timeout: float | None) -> str:
        """Run a pgBackRest command, of one repository or of all, and return its output."""
        chosen = () if repository is None else (f"--repo={self.node(repository).repository}",)
        argv = command(Paths(), *chosen, name, *options)
        try:
            done = self.within(argv) if self.within else self.sandbox.run(argv, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            raise BackupError(f"pgbackrest {name} did not finish within {timeout:g} s and was stopped") from None
        if done.returncode:
            raise self._failure(name, done, repository)
        return done.stdout

    def _failure(self, name: str, done: subprocess.CompletedProcess[str], repository: int | None) -> BackupError:
        output = done.stdout + done.stderr
        if done.returncode == LOCKED:
            return BackupRunningError(
                "another backup is running. Wait until it has finished: `observatory backup list` then shows it"
            )
        # pgBackRest names the first repository that fails, where it works on all.
        named = re.search(r"repo(\d)", output)
        number = repository or (int(named[1]) if named else 1)
        if done.returncode in OTHER_DATABASE:
            place = self.place(number)
            return OtherDatabaseError(
                f"pgbackrest {name} failed: the backup repository {place} belongs to another database",
                remedy=f"Put that database's data back, or give its backups up: {self.give_up(number)}",
            )
        if (name != "restore" and done.returncode in UNREADABLE) or "unable to load info file" in output:
            error = re.search(r"ERROR: \[\d+\]: ([ -~]+)", output)
            return self.unreadable(number, error[1].rstrip(": ") if error else f"exit status {done.returncode}")
        return BackupError(
            f"pgbackrest {name} failed with exit status {done.returncode}:\n{_last_lines(output)}",
            remedy=OTHER_BACKUP if name == "restore" else "",
        )


def has_backups(place: Path) -> bool:
    """Return whether a directory has files of pgBackRest."""
    return any(each.is_file() for name in ("archive", "backup") for each in (place / name).rglob("*"))


def _has_segment(node: Node, segment: str) -> bool:
    """Return whether the newest archive of a repository has a whole WAL segment.

    A file that begins with its name may be what a full disk has left of it, a part of it, or the label of a backup.
    """
    stanza, _ = read_stanza(node)
    if not stanza:
        return False
    newest = stanza["db"][-1]
    place = f"{STANZA}/{newest['version']}-{newest['id']}/{segment[:16]}"
    return any(
        (file := SEGMENT.fullmatch(f"{place}/{name}")) and file[2] == segment and size >= LEAST_BYTES
        for name, size in node.listing(f"archive/{place}").items()
    )


def _run(sandbox: Sandbox, argv: Sequence[str]) -> tuple[int, str]:
    done = sandbox.run(argv, check=False)
    return done.returncode, done.stdout or done.stderr


def _backup(repository: int, record: dict[str, Any]) -> Backup:
    return Backup(
        repository=repository,
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


def _last_lines(output: str) -> str:
    return "\n".join(output.splitlines()[-LAST_LINES:])
