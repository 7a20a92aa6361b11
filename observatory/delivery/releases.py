"""The release store: the versions that may be deployed, each an artifact with its manifest.

Owns what a manifest must say and that an artifact is what its manifest says. How an artifact is built is the service's.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from observatory.delivery.documents import problems
from observatory.partial import partial_path, remove_abandoned


class ReleaseError(Exception):
    """A release that is not there or not what its manifest says; the message names the file and the remedy."""


class Manifest(BaseModel):
    """What an artifact says of itself; versions of the schema that it works with are inclusive."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    version: Annotated[str, Field(pattern=r"^v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    schema_min: Annotated[int, Field(ge=0)]
    schema_max: Annotated[int, Field(ge=0)]


class ReleaseStore:
    """A directory of `<version>.tar.gz` and `<version>.json`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def artifact(self, version: str) -> Path:
        """Return where the artifact of a version is kept, whether or not it is there."""
        return self.directory / f"{version}.tar.gz"

    def manifest(self, version: str) -> Manifest:
        """Return the manifest of a kept version.

        Raises:
            ReleaseError: there is none, or it is damaged.
        """
        file = self.directory / f"{version}.json"
        if not file.exists():
            kept = ", ".join(self.versions()) or "none"
            raise ReleaseError(f"release {version} is not in the store (kept: {kept}); add it first")
        return read_manifest(file)

    def versions(self) -> tuple[str, ...]:
        """Return the kept versions."""
        return tuple(sorted(file.stem for file in self.directory.glob("v*.json")))

    def add(self, artifact: Path, manifest_file: Path) -> Manifest:
        """Keep a release; the same one again changes nothing.

        Raises:
            ReleaseError: the artifact does not have its manifest's digest.
        """
        manifest = read_manifest(manifest_file)
        check_digest(artifact, manifest.sha256)
        self.directory.mkdir(parents=True, exist_ok=True)
        for source, target in (
            (artifact, self.artifact(manifest.version)),
            (manifest_file, self.directory / f"{manifest.version}.json"),
        ):
            _copy(source, target)
        return manifest


def _copy(source: Path, target: Path) -> None:
    """Copy a file whole or not at all."""
    partial = partial_path(target)
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def check_digest(artifact: Path, sha256: str) -> None:
    """Check that a file is what was promised.

    Raises:
        ReleaseError: it is missing, or another one.
    """
    try:
        with artifact.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ReleaseError(f"{artifact}: cannot be read ({error.strerror}); add the release again") from error
    if digest != sha256:
        raise ReleaseError(f"{artifact}: SHA-256 is {digest}, expected {sha256}; build or fetch it again")


def install(artifact: Path, *, sha256: str, target: Path) -> None:
    """Unpack a checked artifact into `target`, whole or not at all; a `target` that stands is left as it is.

    Raises:
        ReleaseError: the artifact is missing, another one, or not an archive.
    """
    remove_abandoned(target.parent)
    if target.is_dir():
        return
    check_digest(artifact, sha256)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = partial_path(target)
    partial.mkdir(mode=0o700)
    try:
        with tarfile.open(artifact) as archive:
            # Debian 12's Python knows no extraction filters yet, and later ones warn without: check, then trust.
            archive.extraction_filter = lambda member, _path: member
            archive.extractall(partial, members=_checked_members(archive))  # noqa: S202 - checked
        partial.rename(target)
    except tarfile.TarError as error:
        raise ReleaseError(f"{artifact}: not a release archive: {error}") from error
    except FileExistsError:
        pass  # another run was first; directories of one name have one content
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _checked_members(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Return the members, all of them plain files and directories below the archive's root."""
    for member in archive.getmembers():
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name!r} is not a plain file below the archive's root")
    return archive.getmembers()


def read_manifest(file: Path) -> Manifest:
    """Return a manifest.

    Raises:
        ReleaseError: the file cannot be read or is not a manifest.
    """
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ReleaseError(f"{file}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ReleaseError(f"{file}: not a release manifest ({problems(error)})") from error
