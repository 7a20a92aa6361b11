"""Finds mmdebstrap, the program that unpacks Debian packages into a directory, or downloads it.

Where the host lacks mmdebstrap (a single Perl script) or Debian's archive keys, their packages are downloaded with the
host's apt, which needs no privileges, and unpacked into a private directory. Nothing is installed on the host.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from observatory.runtime.errors import RootfsError

HOST_KEYRINGS = Path("/usr/share/keyrings")
KEYRING_NAMES = ("debian-archive-keyring.pgp", "debian-archive-keyring.gpg")
HOST_COMMANDS = ("apt-get", "dpkg-deb", "perl", "tar")


@dataclass(frozen=True, kw_only=True)
class Mmdebstrap:
    """The command line of mmdebstrap, and the keyring that verifies its packages."""

    command: tuple[str, ...]
    keyring: Path


def find(directory: Path) -> Mmdebstrap:
    """Return the host's mmdebstrap and keyring, after adding what is missing to `directory`.

    Raises:
        RootfsError: This is no Debian or Ubuntu, or its apt cannot download the packages.
    """
    if missing := [name for name in HOST_COMMANDS if shutil.which(name) is None]:
        raise RootfsError(
            f"building the root filesystem needs {', '.join(missing)}, which this host lacks. Use Debian or Ubuntu"
            " (apt-get install perl), or point OBSERVATORY_ROOTFS to a ready root filesystem."
        )
    absent = _absent(directory)
    if absent:
        _download(absent, directory)
    keyring = _keyring(directory)
    if keyring is None:
        raise RootfsError("the package debian-archive-keyring of this host's release holds no keyring")
    installed = shutil.which("mmdebstrap")
    command = (installed,) if installed else ("perl", str(directory / "usr/bin/mmdebstrap"))
    return Mmdebstrap(command=command, keyring=keyring)


def _absent(directory: Path) -> list[str]:
    packages = []
    if shutil.which("mmdebstrap") is None and not (directory / "usr/bin/mmdebstrap").is_file():
        packages.append("mmdebstrap")
    if _keyring(directory) is None:
        packages.append("debian-archive-keyring")
    return packages


def _keyring(directory: Path) -> Path | None:
    homes = (HOST_KEYRINGS, directory / "usr/share/keyrings")
    return next((home / name for home in homes for name in KEYRING_NAMES if (home / name).is_file()), None)


def _download(packages: list[str], directory: Path) -> None:
    """Unpack `packages` of the host's own release into `directory`, using private copies of apt's lists and cache."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="observatory-apt-") as scratch:
        state, cache = Path(scratch, "state"), Path(scratch, "cache")
        for path in (state / "lists/partial", cache / "archives/partial"):
            path.mkdir(parents=True)
        private = ["-o", f"Dir::State={state}", "-o", "Dir::State::status=/var/lib/dpkg/status"]
        private += ["-o", f"Dir::Cache={cache}", "-o", "APT::Sandbox::User="]
        # An update that reaches no mirror succeeds with warnings, which explain why the download then fails.
        warnings = _apt([*private, "update"], scratch)
        _apt([*private, "download", *packages], scratch, before=warnings)
        for archive in Path(scratch).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", archive, directory], check=True)


def _apt(arguments: list[str], directory: str, *, before: str = "") -> str:
    """Run apt-get in `directory` and return its warnings; an error quotes `before`."""
    result = subprocess.run(["apt-get", "-q", *arguments], cwd=directory, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RootfsError(
            f"mmdebstrap or Debian's keyring is missing and cannot be downloaded:\n{before}{result.stderr.strip()}\n"
            "Remedy: check this host's package sources and network, or as root:"
            " apt-get install mmdebstrap debian-archive-keyring"
        )
    return result.stderr
