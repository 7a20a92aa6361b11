"""Keeps the data directories of prepared throwaway servers, one archive for each, named by a digest of all inputs.

An archive is complete or absent: it is written beside its name and renamed, so a killed or a concurrent command leaves
no partial one behind. The oldest ones are removed, so that number and size stay bounded.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from observatory.files.atomic import remove_abandoned, replacing

KEPT = 6
KEPT_OBJECTS = 100  # files of `observatory.database.replica`
KEPT_BYTES = 600 * 1024 * 1024
TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class Template:
    """The data of a prepared server.

    Attributes:
        key: digest of everything that the data depends on.
        prepare: makes the data on a running server, whose superuser's connection string it gets.
        base: the template that it starts from; None is an empty cluster.
    """

    key: str
    prepare: Callable[[str], None]
    base: Template | None = None


@dataclass(frozen=True, kw_only=True)
class Templates:
    """The kept data of a directory, which is created when it is needed."""

    directory: Path

    def restore(self, template: Template, extract: Sequence[str], data: Path) -> bool:
        """Run `extract` on the archive of a template; return whether the directory `data` then has a cluster.

        Otherwise the directory is empty, and the archive is removed.
        """
        file = self.directory / f"{template.key}.tar"
        try:
            with file.open("rb") as archive:
                done = subprocess.run(extract, stdin=archive, capture_output=True, check=False, timeout=TIMEOUT_S)
            os.utime(file)  # the time of its last use
        except (OSError, subprocess.TimeoutExpired):
            done = None
        if done and not done.returncode and (data / "PG_VERSION").exists():
            return True
        for path in data.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        file.unlink(missing_ok=True)
        return False

    def save(self, template: Template, archive: Sequence[str]) -> None:
        """Keep the output of `archive` as the data of a template; without space for it the next server is prepared."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_abandoned(self.directory)
            with replacing(self.directory / f"{template.key}.tar") as partial:
                partial.touch(mode=0o600, exist_ok=False)
                with partial.open("wb") as output:
                    subprocess.run(archive, stdout=output, stderr=subprocess.DEVNULL, check=True, timeout=TIMEOUT_S)
                    os.fsync(output.fileno())
            self._bound()

    def _bound(self) -> None:
        """Remove the archives that were not used for the longest time, beyond the limits."""
        for pattern, kept in (("*.tar", KEPT), ("*.json", KEPT_OBJECTS)):
            files = [(file.stat(), file) for file in self.directory.glob(pattern)]
            total = 0
            for number, (status, file) in enumerate(sorted(files, key=lambda each: -each[0].st_mtime)):
                total += status.st_size
                if number >= kept or total > KEPT_BYTES:
                    file.unlink(missing_ok=True)
