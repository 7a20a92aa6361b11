"""Installs the release that the rollout document names for this machine's fleet, and makes it the current one.

Runs at every boot, so that a machine that scaling adds runs what is live and not what was live when its template was
made; delivery runs it again to bring another version. Uses the standard library and the AWS CLI alone: the machine has
the text of `observatory.files.archive` in the place of its import.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from observatory.files.archive import unpack

ATTEMPTS, PAUSE_S = 20, 3  # the role's credentials and the way out may take half a minute after a boot
DIGITS = 12  # of the digest in a release's directory, as everywhere
LOCK = ".lock"


def main() -> None:
    """Read the document, install, switch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--document", required=True, help="s3:// URL of the rollout document")
    parser.add_argument("--releases", required=True, help="s3:// URL below which VERSION.tar.gz are")
    parser.add_argument("--region", required=True)
    parser.add_argument("--fleet", required=True, choices=("blue", "green"))
    parser.add_argument("--directory", required=True, type=Path, help="where releases are unpacked")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    with (arguments.directory / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_incomplete(arguments.directory)
        state = json.loads(copy(arguments.document, "-", arguments.region))[arguments.fleet]
        target = arguments.directory / f"{state['version']}-{state['sha256'][:DIGITS]}"
        if not target.is_dir():
            artifact = f"{arguments.releases}/{state['version']}.tar.gz"
            install(artifact, state["sha256"], target, arguments.region)
        switch(arguments.directory / "current", target)


def remove_incomplete(directory: Path) -> None:
    """Remove what a run that was killed has left: no other one runs now."""
    for path in directory.glob(".*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink()


def install(artifact: str, sha256: str, target: Path, region: str) -> None:
    """Download, check and unpack, whole or not at all; the rename comes when the files are on the disk."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as scratch:
        archive, unpacked = Path(scratch, "artifact"), Path(scratch, "unpacked")
        copy(artifact, str(archive), region)
        unpacked.mkdir(mode=0o755)
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != sha256:
                sys.exit(f"{artifact}: SHA-256 is {digest}, the rollout document says {sha256}; it is not installed")
            file.seek(0)
            try:
                unpack(file, unpacked)
            except tarfile.TarError as error:
                sys.exit(f"{artifact}: not a release archive: {error}; it is not installed")
            except OSError as error:
                sys.exit(f"{artifact}: cannot be unpacked: {error}; it is not installed")
        os.sync()
        unpacked.rename(target)


def switch(link: Path, target: Path) -> None:
    """Point the link at the release in one step."""
    partial = link.with_name(f".{link.name}.{os.getpid()}")
    partial.symlink_to(target.name)
    partial.replace(link)


def copy(source: str, target: str, region: str) -> str:
    """Copy an object to a file, or to the result with `-`; ends the program when it is not to be had."""
    command = ["aws", "s3", "cp", "--only-show-errors", "--region", region, source, target]
    for attempt in range(1, ATTEMPTS + 1):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        if attempt < ATTEMPTS:
            time.sleep(PAUSE_S)
    sys.exit(f"{source} cannot be copied, {ATTEMPTS} attempts: {done.stderr.strip()}")


if __name__ == "__main__":
    main()
