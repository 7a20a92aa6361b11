"""Which backups were compared with their checksums, and whether their files are as they were then.

A comparison reads every file of a backup and of those that it builds on: hours for a terabyte. The record has the size
and the time of each file, so that a retry of a deployment reads none again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from observatory.backups.pgbackrest import PgBackRest
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import STANZA
from observatory.runtime import Sandbox

RECORD = f"{Paths().data}/backups-verified.json"

PREFIX = "repository "  # begins each name in the record; those of version 0.1 have labels alone

Files = dict[str, list[int]]  # size in bytes and time of the last change in ns, by path


@dataclass(frozen=True)
class VerifiedBackups:
    """The record of the stack in `sandbox`, of the backups of one repository."""

    sandbox: Sandbox
    repository: int = 1

    def has(self, label: str) -> bool:
        """Return whether the backup was verified, and no file has changed since then."""
        return self._read().get(self._key(label)) == self._files(label)

    def has_prior_of(self, label: str) -> bool:
        """Return whether the backup builds on one that was verified, and whose files have not changed since then."""
        [_, *priors] = self._chain(label)
        return bool(priors) and self.has(priors[0])

    def add(self, label: str) -> None:
        """Record that the backup was verified; backups that no longer exist are removed from the record."""
        own = {name: files for name, files in self._read().items() if name.startswith(self._key(""))}
        others = {name: files for name, files in self._read().items() if name.startswith(PREFIX) and name not in own}
        existing = {self._key(each) for each in self._priors()}
        kept = {name: files for name, files in own.items() if name in existing}
        self.sandbox.write_file(RECORD, json.dumps({**others, **kept, self._key(label): self._files(label)}))

    def _key(self, label: str) -> str:
        return f"{PREFIX}{self.repository}/{label}"

    def _priors(self) -> dict[str, str | None]:
        return {each.label: each.prior for each in PgBackRest(self.sandbox).info(self.repository)}

    def _read(self) -> dict[str, Files]:
        file = self.sandbox.host_path(RECORD)
        try:
            found: dict[str, Files] = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # a damaged record costs one more verification
            return {}
        return found

    def _files(self, label: str) -> Files:
        """Return the files of a backup and of those that it builds on."""
        place = PgBackRest(self.sandbox).place(self.repository) / "backup" / STANZA
        files = (file for each in self._chain(label) for file in sorted((place / each).rglob("*")))
        return {str(file.relative_to(place)): _size_and_time(file) for file in files if file.is_file()}

    def _chain(self, label: str) -> list[str]:
        priors = self._priors()
        chain: list[str] = []
        at: str | None = label
        while at is not None:
            chain.append(at)
            at = priors.get(at)
        return chain


def _size_and_time(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]
