"""What one repository has to restore from: its sound backups and its archived WAL."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from observatory.backups.archived_wal import ArchivedWal, BaseBackup
from observatory.backups.pgbackrest import PgBackRest
from observatory.backups.target import parse_lsn
from observatory.errors import REFUSED
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import config_file
from observatory.nodes.programs.backup_repository import (
    HISTORY,
    SEGMENT,
    SEGMENT_BYTES,
    STANZA,
    SWITCH,
    Archive,
    Node,
    Position,
    position,
    read_stanza,
    records,
)
from observatory.runtime import RuntimeFault, Sandbox

FILE = re.compile(r'^(\w+/[^=\n]+)=(\{"(?:bi|bim|bni|checksum|size).*\})$', re.MULTILINE)  # of a manifest
SUFFIXES = ("", ".zst", ".pgbi", ".gz", ".lz4", ".bz2")
REPOSITORY = re.compile(r"^repo(\d+)-path=", re.MULTILINE)


class UncoveredTargetError(RuntimeFault):
    """No backup leads to the target of a restore; nothing was changed."""

    exit_code = REFUSED


class UnusableRepositoryError(UncoveredTargetError):
    """A repository cannot be read, or has the backups of another database; nothing was changed."""


def configured_repositories(sandbox: Sandbox) -> list[int]:
    """Return the numbers of the stack's repositories.

    Raises:
        UnusableRepositoryError: the stack has no configuration of pgBackRest.
    """
    file = sandbox.host_path(config_file(Paths()))
    if not file.exists():
        raise UnusableRepositoryError(f"{file} does not exist", remedy="Run `observatory up`, which writes it.")
    return sorted(int(each) for each in REPOSITORY.findall(file.read_text(encoding="utf-8")))


def check_configured(sandbox: Sandbox, number: int) -> None:
    """Check that the stack has a repository of this number.

    Raises:
        UncoveredTargetError: it has none.
    """
    numbers = configured_repositories(sandbox)
    if number not in numbers:
        there = " and ".join(str(each) for each in numbers)
        raise UncoveredTargetError(f"there is no repository {number}: the stack has {there}")


@dataclass(frozen=True)
class RepositoryContents:
    """The contents of the repository `number`, read when they are first used."""

    sandbox: Sandbox
    number: int

    @cached_property
    def backups(self) -> list[BaseBackup]:
        """The sound backups of the newest database system, the newest first."""
        newest = self._stanza["db"][-1]["id"]
        found = [each for each in records(self._stanza) if each["database"]["id"] == newest and not each.get("error")]
        return [self._backup(each) for each in reversed(found)]

    @cached_property
    def wal(self) -> ArchivedWal:
        """The archived WAL of the newest database system."""
        database = self._stanza["db"][-1]
        directory = f"{database['version']}-{database['id']}"
        files: dict[Position, list[int]] = {}
        histories = {}
        for path, length in self._node.listing("archive").items():
            if (segment := SEGMENT.fullmatch(path)) and segment[1] == directory:
                files.setdefault(position(segment[2], self._segment_bytes), []).append(length)
            elif (history := HISTORY.fullmatch(path)) and history[1] == directory:
                histories[int(history[2], 16)] = self._history(path)
        return ArchivedWal(self.sandbox, self.number, Archive(files, histories, self._segment_bytes))

    @property
    def is_usable(self) -> bool:
        """Whether the repository can be read, and has the backups of this database."""
        with suppress(UnusableRepositoryError):
            return bool(self._stanza)
        return False

    def has_segment(self, name: str) -> bool:
        """Return whether a WAL segment is archived."""
        return position(name, self._segment_bytes) in self.wal.archive.files

    def born(self, timeline: int) -> datetime:
        """Return when a timeline began: see `ArchivedWal.born`."""
        if timeline not in self._born:
            self._born[timeline] = self.wal.born(timeline)
        return self._born[timeline]

    def missing(self, backup: BaseBackup) -> str:
        """Return a file of a backup, or of one that it builds on, that is missing or truncated; empty if none is."""
        if backup.label not in self._missing:
            self._missing[backup.label] = next((each for label in backup.chain for each in self._lost(label)), "")
        return self._missing[backup.label]

    def reread_wal(self) -> None:
        """Forget what was archived when the archive was read."""
        self.__dict__.pop("wal", None)
        self._born.clear()

    @cached_property
    def _born(self) -> dict[int, datetime]:
        return {}

    @cached_property
    def _missing(self) -> dict[str, str]:
        return {}

    @cached_property
    def _files(self) -> dict[str, int]:
        return self._node.listing(f"backup/{STANZA}")

    def _lost(self, label: str) -> Iterator[str]:
        """Yield the files of a backup that are missing or shorter than its manifest says."""
        manifest = f"{label}/backup.manifest"
        status, text = self._node.run((*self._node.pgbackrest, "repo-get", f"backup/{STANZA}/{manifest}"))
        if status or manifest not in self._files:
            yield manifest
            return
        for path, size in stored_files(label, text).items():
            if not any(self._files.get(f"{path}{each}", -1) >= size for each in SUFFIXES):
                yield path

    @cached_property
    def _node(self) -> Node:
        return PgBackRest(self.sandbox).node(self.number)

    @cached_property
    def _segment_bytes(self) -> int:
        return self._node.control.get("Bytes per WAL segment") or SEGMENT_BYTES

    @cached_property
    def _stanza(self) -> dict[str, Any]:
        stanza, error = read_stanza(self._node)
        if error:
            raise UnusableRepositoryError(f"repository {self.number} cannot be read: {error}")
        own = self._node.control.get("Database system identifier")
        if own and own != stanza["db"][-1]["system-id"]:
            raise UnusableRepositoryError(f"repository {self.number} has the backups of another database")
        return stanza

    def _history(self, path: str) -> list[tuple[int, int]]:
        text = self._node.run((*self._node.pgbackrest, "repo-get", f"archive/{path}"))[1]
        return [(int(parent), parse_lsn(f"{high}/{low}")) for parent, high, low in SWITCH.findall(text)]

    def _backup(self, record: dict[str, Any]) -> BaseBackup:
        return BaseBackup(
            label=record["label"],
            # pgBackRest has whole seconds, cut off.
            ended=datetime.fromtimestamp(record["timestamp"]["stop"], UTC) + timedelta(seconds=1),
            start=position(record["archive"]["start"], self._segment_bytes),
            stop=parse_lsn(record["lsn"]["stop"]),
            chain=(record["label"], *(record.get("reference") or [])),
            bytes=record["info"]["size"],
        )


def stored_files(label: str, manifest: str) -> dict[str, int]:
    """Return the files of a repository that the manifest of a backup refers to, with their least size in bytes.

    Names are those below the directory of all backups, without the suffix of a compression.
    """
    found: dict[str, int] = {}
    for name, text in FILE.findall(manifest):
        file = json.loads(text)
        if not file.get("size"):
            continue
        holder, length = file.get("reference", label), file.get("repo-size", file["size"])
        path = f"{holder}/bundle/{file['bni']}" if "bni" in file else f"{holder}/{name}"
        found[path] = max(found.get(path, 0), file.get("bno", 0) + length)
    return found
