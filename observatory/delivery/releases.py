"""The release store: the versions that may be deployed, each an artifact with its manifest.

Owns the manifest's fields, its signature and the check of an artifact's digest. Does not own how an artifact is built
(`service.build`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from observatory.documents.validation import problems
from observatory.errors import REFUSED, ObservatoryError
from observatory.files import archive
from observatory.files.atomic import remove_abandoned, replacing, write_file
from observatory.files.locks import exclusive
from observatory.security.signatures import Signature, SignatureError, sign, signer
from observatory.settings import MAX_START_SECONDS

PUBLIC = 0o644  # mode of a manifest
SIGNED = ("name", "version", "sha256", "schema_min", "schema_max")
OPTIONAL = ("start_seconds", "metrics")  # signed where a manifest has them, so older manifests stay valid
MAX_METRICS = 200


MetricName = Annotated[str, Field(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]{0,127}$")]


class ReleaseError(ObservatoryError):
    """A release is missing or differs from its manifest; the message names the file and the remedy."""


class ReleaseRefusedError(ReleaseError):
    """A release has no trusted signature, or its version is stored with other content."""

    exit_code = REFUSED


class Manifest(BaseModel):
    """The manifest of an artifact.

    Further fields, which a build may add, are neither read nor signed.

    Attributes:
        name: of the service.
        version: of the release.
        sha256: of the artifact.
        schema_min: first schema version that it works with.
        schema_max: last schema version that it works with.
        start_seconds: until an instance must be ready; None is the setting `delivery.start_seconds`.
        metrics: names of the metrics that it exports; None is not known. A histogram has the name without `_bucket`.
        signature: of the other fields.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    version: Annotated[str, Field(pattern=r"^v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    schema_min: Annotated[int, Field(ge=0)]
    schema_max: Annotated[int, Field(ge=0)]
    start_seconds: Annotated[int, Field(ge=1, le=MAX_START_SECONDS)] | None = None
    metrics: Annotated[tuple[MetricName, ...], Field(max_length=MAX_METRICS)] | None = None
    signature: Signature | None = None

    @property
    def payload(self) -> bytes:
        """What a signature covers: the fields `SIGNED` and those of `OPTIONAL` that it has, as JSON.

        The form is the canonical one of RFC 8785. For ASCII strings and integers that is Python's JSON with sorted keys
        and no spaces.
        """
        signed = self.model_dump(mode="json", include={*SIGNED, *OPTIONAL}, exclude_none=True)
        return json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()

    def signed_by(self, trusted: Mapping[str, str]) -> str:
        """Return the name of the trusted key that signed this.

        Args:
            trusted: public keys by name.

        Raises:
            ReleaseRefusedError: it has no signature, none of a trusted key, or was changed after it was signed.
        """
        if self.signature is None:
            raise ReleaseRefusedError(
                f"release {self.version} is not signed: run `observatory release sign` where it was built"
            )
        try:
            return signer(self.payload, self.signature, trusted)
        except SignatureError as error:
            raise ReleaseRefusedError(
                f"release {self.version}: {error}. Fetch artifact and manifest again from where they were signed, or "
                "add the signer's public key to the setting `delivery.trusted_keys`"
            ) from error

    def must_be_the_stored(self, sha256: str | None) -> None:
        """Check that a version that is added again has the stored artifact, whose digest is None where it is missing.

        Raises:
            ReleaseRefusedError: it has another one.
        """
        if sha256 not in (None, self.sha256):
            raise ReleaseRefusedError(
                f"release {self.version} is stored with another artifact (SHA-256 {sha256}, the new one has "
                f"{self.sha256}): build it with a new version number"
            )


class ReleaseStore:
    """A directory of `<version>.tar.gz` and `<version>.json`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def artifact(self, version: str) -> Path:
        """Return the path of a version's artifact, whether or not it exists."""
        return self.directory / f"{version}.tar.gz"

    def manifest(self, version: str) -> Manifest:
        """Return the manifest of a stored version.

        Raises:
            ReleaseError: the version is not stored, or its manifest is damaged.
        """
        file = self.directory / f"{version}.json"
        if not file.exists():
            stored = ", ".join(self.versions()) or "none"
            raise ReleaseError(
                f"release {version} is not in the store (stored: {stored}): run `observatory release add` first"
            )
        return stored_manifest(version, _content(file), str(file))

    def start_seconds(self, version: str) -> int | None:
        """Return the start limit of a version's manifest; None without one, and if the version is not stored."""
        return self.manifest(version).start_seconds if version in self.versions() else None

    def versions(self) -> tuple[str, ...]:
        """Return the stored versions."""
        return tuple(sorted(file.stem for file in self.directory.glob("v*.json")))

    def checked(self, version: str, trusted: Mapping[str, str]) -> Manifest:
        """Return the manifest of a stored version, after a check of its signature and its artifact's digest.

        Args:
            version: of the release.
            trusted: public keys by name.

        Raises:
            ReleaseRefusedError: it has no trusted signature.
            ReleaseError: it is not stored, or artifact and manifest differ.
        """
        manifest = self.manifest(version)
        manifest.signed_by(trusted)
        check_digest(self.artifact(version), manifest.sha256)
        return manifest

    def add(self, artifact: Path, manifest_file: Path, trusted: Mapping[str, str]) -> Manifest:
        """Store a release; storing it again replaces only its signature.

        Args:
            artifact: of the release.
            manifest_file: its manifest.
            trusted: public keys by name, one of which must have signed the manifest.

        Raises:
            ReleaseRefusedError: it has no trusted signature, or the version is stored with another artifact.
            ReleaseError: the artifact does not have its manifest's digest, or a file cannot be read.
        """
        manifest = vetted(artifact, manifest_file, trusted)
        with self._locked():
            manifest.must_be_the_stored(self._stored(manifest.version))
            # The manifest is last: with it the version counts as stored. The copies are checked, since the files may
            # have changed after their check, and a stored version must stay one that can be returned to.
            with (
                replacing(self.directory / f"{manifest.version}.json") as copied_manifest,
                replacing(self.artifact(manifest.version)) as copied,
            ):
                shutil.copyfile(manifest_file, copied_manifest)
                shutil.copyfile(artifact, copied)
                if vetted(copied, copied_manifest, trusted) != manifest:
                    raise ReleaseError(f"{manifest_file}: changed while the release was stored: add it again")
        return manifest

    def remove(self, version: str) -> None:
        """Remove a version, so that a new build can have its number; no fleet may run it or roll back to it."""
        with self._locked():
            (self.directory / f"{version}.json").unlink(missing_ok=True)
            self.artifact(version).unlink(missing_ok=True)

    def _stored(self, version: str) -> str | None:
        """Return the digest of a stored version's artifact, None where it is not stored.

        Where the manifest is damaged, or that of another version, the artifact beside it decides.
        """
        if version not in self.versions():
            return None
        try:
            return self.manifest(version).sha256
        except ReleaseError:
            return _digest(self.artifact(version))

    def _locked(self) -> AbstractContextManager[object]:
        return exclusive(self.directory / ".lock")


def sign_release(artifact: Path, manifest_file: Path, private_key: str) -> Manifest:
    """Sign a manifest for its artifact and write the signature to the manifest's file; it replaces an earlier one.

    Args:
        artifact: of the release.
        manifest_file: its manifest.
        private_key: Ed25519 key in PEM.

    Raises:
        ReleaseError: the artifact does not have its manifest's digest, or the key cannot be used.
    """
    manifest = read_manifest(manifest_file)
    check_digest(artifact, manifest.sha256)
    try:
        signature = sign(manifest.payload, private_key)
    except SignatureError as error:
        raise ReleaseError(f"{manifest_file}: cannot be signed: {error}") from error
    written = {**json.loads(manifest_file.read_bytes()), "signature": signature.model_dump()}
    write_file(manifest_file, json.dumps(written, indent=2) + "\n", mode=PUBLIC)
    return manifest.model_copy(update={"signature": signature})


def vetted(artifact: Path, manifest_file: Path, trusted: Mapping[str, str]) -> Manifest:
    """Return the manifest of a release after a check of its signature and its artifact's digest.

    Raises:
        ReleaseRefusedError: it has no trusted signature.
        ReleaseError: the artifact does not have its manifest's digest, or one of the files cannot be read.
    """
    manifest = read_manifest(manifest_file)
    manifest.signed_by(trusted)
    check_digest(artifact, manifest.sha256)
    return manifest


def check_digest(artifact: Path, sha256: str) -> None:
    """Check the digest of an artifact.

    Raises:
        ReleaseError: the artifact cannot be read, or has another digest.
    """
    _opened(artifact, sha256).close()


def _opened(artifact: Path, sha256: str) -> BinaryIO:
    """Return an artifact, open at its start, after a check of its digest: another file of its name is never read."""
    try:
        file = artifact.open("rb")
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
    except OSError as error:
        raise ReleaseError(f"{artifact}: cannot be read ({error.strerror}): add the release again") from error
    if digest != sha256:
        file.close()
        raise ReleaseError(f"{artifact}: SHA-256 is {digest}, expected {sha256}: build or fetch it again")
    return file


def install(artifact: Path, *, sha256: str, target: Path) -> None:
    """Check an artifact and unpack it into `target`, completely or not at all; an existing `target` stays as it is.

    Raises:
        ReleaseError: the artifact cannot be read, has another digest, or is not an archive.
    """
    remove_abandoned(target.parent)
    if target.is_dir():
        return
    with _opened(artifact, sha256) as file:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with replacing(target) as partial:
                partial.mkdir(mode=0o700)
                archive.unpack(file, partial)
        except tarfile.TarError as error:
            raise ReleaseError(f"{artifact}: not a release archive: {error}") from error
        except OSError:
            if not target.is_dir():  # otherwise another process was first, with the same content
                raise


def stored_manifest(version: str, content: bytes, place: str) -> Manifest:
    """Return the manifest that a version is stored with.

    Raises:
        ReleaseError: it is damaged, or that of another version, which a copy by hand makes.
    """
    again = f"add release {version} again"
    try:
        manifest = parse_manifest(content, place)
    except ReleaseError as error:
        raise ReleaseError(f"{error}: {again}") from error
    if manifest.version != version:
        raise ReleaseError(f"{place}: is the manifest of {manifest.version}: {again}")
    return manifest


def read_manifest(file: Path) -> Manifest:
    """Return the manifest in a file.

    Raises:
        ReleaseError: the file cannot be read or is not a manifest.
    """
    return parse_manifest(_content(file), str(file))


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ReleaseError(f"{file}: cannot be read: {error.strerror}") from error


def _digest(artifact: Path) -> str | None:
    """Return the digest of an artifact; None where there is none."""
    if not artifact.exists():
        return None
    with artifact.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_manifest(content: bytes, place: str) -> Manifest:
    """Return the manifest in a text.

    Args:
        content: of the manifest.
        place: of the text, for messages.

    Raises:
        ReleaseError: the text is not a manifest.
    """
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise ReleaseError(f"{place}: not a release manifest ({problems(error)})") from error
