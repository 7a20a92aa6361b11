"""The two programs that the host must lend: mmdebstrap and bubblewrap.

Those on PATH are used. Otherwise their Debian packages are downloaded with the host's own apt and unpacked below the
cache, as any user; nothing is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from observatory.machine.errors import RootfsError
from observatory.machine.files import locked, make_directory

PACKAGE = {"mmdebstrap": "mmdebstrap", "bwrap": "bubblewrap"}
KEYRING = "usr/share/keyrings/debian-archive-trixie-stable.gpg"  # in debian-archive-keyring since Debian 12.11


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Where programs and keyrings of the host are, or are unpacked."""

    directory: Path

    def program(self, name: str) -> Path:
        """Return a program's path, from PATH or from its unpacked package.

        Raises:
            RootfsError: it is neither there nor to be had from apt.
        """
        if found := shutil.which(name):
            return Path(found)
        unpacked = self.directory / "usr/bin" / name
        if not unpacked.exists():
            self._unpack(PACKAGE[name])
        return unpacked

    def keyring(self) -> Path:
        """Return the keyring that Debian 13 is signed with; Ubuntu and older Debian do not have it."""
        for root in (Path("/"), self.directory):
            if (root / KEYRING).exists():
                return root / KEYRING
        self._unpack("debian-archive-keyring")
        return self.directory / KEYRING

    def _unpack(self, package: str) -> None:
        if not shutil.which("apt-get"):
            raise RootfsError(f"{package} is not installed and there is no apt to get it with; install {package}")
        with locked(self.directory / "lock"):
            downloads = self.directory / "downloads"
            make_directory(downloads / "lists" / "partial")
            make_directory(downloads / "cache" / "archives" / "partial")
            self._apt(downloads, "update")
            self._apt(downloads, "download", package)
            for file in downloads.glob(f"{package}_*.deb"):
                subprocess.run(["dpkg-deb", "-x", file, self.directory], check=True)

    def _apt(self, downloads: Path, *arguments: str) -> None:
        """Run apt with lists and cache of our own: a fresh machine has none, and others are not ours to change."""
        options = (
            f"Dir::State::lists={downloads / 'lists'}",
            f"Dir::Cache={downloads / 'cache'}",
            f"APT::Sandbox::User={'root' if os.getuid() == 0 else ''}",
        )
        flags = [flag for option in options for flag in ("-o", option)]
        done = subprocess.run(
            ["apt-get", "-q", *flags, *arguments], cwd=downloads, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RootfsError(f"apt-get {' '.join(arguments)} failed:\n{done.stderr.strip()}")
