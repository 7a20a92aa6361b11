"""Which backups were compared with their checksums, and whether their files are as they were then.

A comparison reads every file of a backup and of those that it builds on: hours for a terabyte. The record has the size
and the time of each file, so that a retry of a deployment reads none again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from observatory.backups.pgbackrest import list_backups
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import STANZA, repository
from observatory.runtime import Sandbox

RECORD = f"{Paths().data}/backups-verified.json"

Files = dict[str, list[int]]  # size in bytes and time of the last change in ns, by path


@dataclass(frozen=True)
class VerifiedBackups:
    """The record of the stack in `sandbox`."""

    sandbox: Sandbox

    def has(self, label: str) -> bool:
        """Return whether the backup was verified, and no file has changed since then."""
        return self._read().get(label) == self._files(label)

    def has_prior_of(self, label: str) -> bool:
        """Return whether the backup builds on one that was verified, and whose files have not changed since then."""
        [_, *priors] = self._chain(label)
        return bool(priors) and self.has(priors[0])

    def add(self, label: str) -> None:
        """Record that the backup was verified; backups that no longer exist are removed from the record."""
        existing = {each.label for each in list_backups(self.sandbox)}
        kept = {name: files for name, files in self._read().items() if name in existing}
        self.sandbox.write_file(RECORD, json.dumps({**kept, label: self._files(label)}))

    def _read(self) -> dict[str, Files]:
        file = self.sandbox.host_path(RECORD)
        try:
            found: dict[str, Files] = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # a damaged record costs one more verification
            return {}
        return found

    def _files(self, label: str) -> Files:
        """Return the files of a backup and of those that it builds on."""
        place = self.sandbox.host_path(repository(Paths())) / "backup" / STANZA
        files = (file for each in self._chain(label) for file in sorted((place / each).rglob("*")))
        return {str(file.relative_to(place)): _size_and_time(file) for file in files if file.is_file()}

    def _chain(self, label: str) -> list[str]:
        priors = {each.label: each.prior for each in list_backups(self.sandbox)}
        chain: list[str] = []
        at: str | None = label
        while at is not None:
            chain.append(at)
            at = priors.get(at)
        return chain


def _size_and_time(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]
