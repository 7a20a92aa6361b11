"""The release store: the versions that may be deployed, each an artifact with its manifest.

Owns what a manifest must say, that somebody trusted has signed it, and that an artifact is what its manifest says. How
an artifact is built is the service's.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from observatory.documents.validation import problems
from observatory.errors import REFUSED, ObservatoryError
from observatory.files.atomic import partial_path, remove_abandoned
from observatory.security.signatures import Signature, SignatureError, sign, signer

SIGNED = ("name", "version", "sha256", "schema_min", "schema_max")


class ReleaseError(ObservatoryError):
    """A release that is not there or not what its manifest says; the message names the file and the remedy."""


class ReleaseRefusedError(ReleaseError):
    """A release that nobody trusted has signed, or a version that is kept already with other content."""

    exit_code = REFUSED


class Manifest(BaseModel):
    """What an artifact says of itself; versions of the schema that it works with are inclusive.

    The signature covers all else that stands here. What a build adds for itself is neither read nor signed.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    version: Annotated[str, Field(pattern=r"^v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    schema_min: Annotated[int, Field(ge=0)]
    schema_max: Annotated[int, Field(ge=0)]
    signature: Signature | None = None

    @property
    def payload(self) -> bytes:
        """What a signature covers: the fields `SIGNED` as JSON in RFC 8785's canonical form.

        That form is Python's with sorted keys and no spaces, as the strings here are ASCII and the numbers whole.
        """
        return json.dumps(self.model_dump(include=set(SIGNED)), sort_keys=True, separators=(",", ":")).encode()

    def signed_by(self, trusted: Mapping[str, str]) -> str:
        """Return the name of the trusted key that signed this.

        Args:
            trusted: public keys by their names.

        Raises:
            ReleaseRefusedError: nobody has signed it, or nobody who is trusted, or it was altered since.
        """
        if self.signature is None:
            raise ReleaseRefusedError(
                f"release {self.version} is not signed: sign it where it was built, by `observatory release sign`"
            )
        try:
            return signer(self.payload, self.signature, trusted)
        except SignatureError as error:
            raise ReleaseRefusedError(
                f"release {self.version}: {error}. Fetch artifact and manifest again from where they were signed, or "
                "add the signer's public key to `delivery.trusted_keys`"
            ) from error

    def must_be_the_same_as(self, added: Manifest) -> None:
        """Keep a version's content for ever.

        Raises:
            ReleaseRefusedError: another artifact is to be kept under the version of this one.
        """
        if self.sha256 != added.sha256:
            raise ReleaseRefusedError(
                f"release {self.version} is kept already with another artifact (SHA-256 {self.sha256}, not "
                f"{added.sha256}): give the new one a version of its own"
            )


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

    def checked(self, version: str, trusted: Mapping[str, str]) -> Manifest:
        """Return the manifest of a kept version that is whole and signed by somebody trusted, whoever added it.

        Raises:
            ReleaseError: it is not.
        """
        manifest = self.manifest(version)
        manifest.signed_by(trusted)
        check_digest(self.artifact(version), manifest.sha256)
        return manifest

    def add(self, artifact: Path, manifest_file: Path, trusted: Mapping[str, str]) -> Manifest:
        """Keep a release; the same one again changes nothing but its signature.

        Args:
            artifact: to be kept.
            manifest_file: what it says of itself.
            trusted: public keys by their names, one of which has signed it.

        Raises:
            ReleaseRefusedError: nobody trusted has signed it, or the version is kept with another digest.
            ReleaseError: the artifact does not have its manifest's digest.
        """
        manifest = vetted(artifact, manifest_file, trusted)
        with self._locked():
            if manifest.version in self.versions():
                self.manifest(manifest.version).must_be_the_same_as(manifest)
            # The manifest is last: with it the version counts as kept.
            _copy(artifact, self.artifact(manifest.version))
            _copy(manifest_file, self.directory / f"{manifest.version}.json")
        return manifest

    def remove(self, version: str) -> None:
        """Give a version up, so that another build may have its name; nothing may run it or go back to it."""
        with self._locked():
            (self.directory / f"{version}.json").unlink(missing_ok=True)
            self.artifact(version).unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def sign_release(artifact: Path, manifest_file: Path, private_key: str) -> Manifest:
    """Sign a manifest, in its file, as true of an artifact; an earlier signature is replaced.

    Raises:
        ReleaseError: the artifact is not what the manifest says, or the key cannot be used.
    """
    manifest = read_manifest(manifest_file)
    check_digest(artifact, manifest.sha256)
    try:
        signature = sign(manifest.payload, private_key)
    except SignatureError as error:
        raise ReleaseError(f"{manifest_file}: cannot be signed: {error}") from error
    written = {**json.loads(manifest_file.read_bytes()), "signature": signature.model_dump()}
    partial = partial_path(manifest_file)
    try:
        partial.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        partial.replace(manifest_file)
    finally:
        partial.unlink(missing_ok=True)
    return manifest.model_copy(update={"signature": signature})


def _copy(source: Path, target: Path) -> None:
    """Copy a file whole or not at all."""
    partial = partial_path(target)
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def vetted(artifact: Path, manifest_file: Path, trusted: Mapping[str, str]) -> Manifest:
    """Return the manifest of a release that may be kept: signed by somebody trusted, and true of the artifact.

    Raises:
        ReleaseRefusedError: nobody trusted has signed it.
        ReleaseError: the artifact does not have its manifest's digest, or one of the files cannot be read.
    """
    manifest = read_manifest(manifest_file)
    manifest.signed_by(trusted)
    check_digest(artifact, manifest.sha256)
    return manifest


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
        return parse_manifest(file.read_bytes(), str(file))
    except OSError as error:
        raise ReleaseError(f"{file}: cannot be read: {error.strerror}") from error


def parse_manifest(content: bytes, place: str) -> Manifest:
    """Return a manifest by its text, which was found at `place`.

    Raises:
        ReleaseError: it is none.
    """
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise ReleaseError(f"{place}: not a release manifest ({problems(error)})") from error
