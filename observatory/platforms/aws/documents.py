"""A stack's rollout document, releases and approvals on AWS: objects of its release bucket.

A document changes only by S3's conditional writes, of which the first one wins. (https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html)
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from pydantic import ValidationError

from observatory.delivery.approvals import Approval, approval_of
from observatory.delivery.releases import Manifest, ReleaseError, stored_manifest, vetted
from observatory.documents.document_file import NEWER, number_in
from observatory.documents.rollout import RolloutDocument, RolloutError, StaleRolloutError, successor
from observatory.documents.validation import problems
from observatory.platforms.aws.clients import aws_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

WRITER = "writer"  # metadata of the document: the id of the write that made it
EARLIER_VERSIONS = 20  # of a damaged or deleted document that are read until one is whole
MISSING = frozenset({"NoSuchKey", "404"})
CONDITION_FAILED = frozenset({"PreconditionFailed", "ConditionalRequestConflict", *MISSING})
REMEDY = "check the credentials (`aws sts get-caller-identity`) and their right to use the bucket"


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The current document, its ETag, and the id of the write that made it; no ETag where the object was deleted."""

    document: RolloutDocument
    etag: str | None = None
    writer: str | None = None

    @property
    def unchanged(self) -> dict[str, Any]:
        """The condition of a write: that the object is still what was read, or still deleted."""
        return {"IfNoneMatch": "*"} if self.etag is None else {"IfMatch": self.etag}


@dataclass(kw_only=True)
class S3RolloutStore:
    """The rollout document of one stack as an object, changed by compare-and-set on its ETag.

    The last document read is kept until it is changed, so that a change does not read it again: a rollback reads a
    dozen times while users wait.
    """

    client: S3Client = field(repr=False)
    bucket: str
    key: str
    problem: str = field(default="", init=False)
    _last: _Found | None = field(default=None, init=False, repr=False)

    @property
    def url(self) -> str:
        """The document's URL."""
        return f"s3://{self.bucket}/{self.key}"

    def read(self) -> RolloutDocument | None:
        """Return the document, from an earlier version of an object that is damaged or was deleted; None without one.

        Raises:
            RolloutError: S3 does not answer, or no version of the object is a document.
        """
        self.problem = ""
        found = self._find()
        return found.document if found else None

    def compare_and_set(self, expected: RolloutDocument, changed: RolloutDocument) -> RolloutDocument:
        """Replace `expected` by `changed` and return what was written, its revision raised by one.

        Raises:
            StaleRolloutError: the document is no longer `expected`, or has a newer fencing number.
            RolloutError: S3 does not answer; `read` shows whether the document was written.
        """
        found = self._last if self._last and self._last.document == expected else self._find()
        self._last = None
        written = successor(found.document if found else None, expected, changed, place=self.url)
        assert found is not None  # noqa: S101 - nothing has no successor
        writer = uuid.uuid4().hex
        with _s3_errors(self.url):
            try:
                self.client.put_object(
                    Bucket=self.bucket,
                    Key=self.key,
                    Body=written.model_dump_json(indent=2).encode(),
                    ContentType="application/json",
                    Metadata={WRITER: writer},
                    **found.unchanged,
                )
            except ClientError as error:
                if _code(error) not in CONDITION_FAILED:
                    raise
                self._settle(writer)
        return written

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold no lock: a lease would outlive its holder. `converge` reads the document again after each change."""
        return nullcontext()

    def _settle(self, writer: str) -> None:
        """Distinguish a write that lost from one that succeeded but whose first answer was lost and which was retried.

        Raises:
            StaleRolloutError: the write lost.
        """
        current = self._find()
        if current is None or current.writer != writer:
            raise StaleRolloutError(f"{self.url}: the rollout document changed concurrently; run the command again")

    def _find(self) -> _Found | None:
        with _s3_errors(self.url):
            try:
                answer = self.client.get_object(Bucket=self.bucket, Key=self.key)
                content = answer["Body"].read()
            except ClientError as error:
                if _code(error) in MISSING:
                    return self._deleted()
                raise
        try:
            document = RolloutDocument.model_validate_json(content)
        except ValidationError as error:
            damage = f"{self.url}: not a rollout document ({problems(error)})"
            document = self._last_good(damage, self._versions(damage))
        self._last = _Found(document=document, etag=answer["ETag"], writer=answer["Metadata"].get(WRITER))
        return self._last

    def _deleted(self) -> _Found | None:
        """Return the last document of an object that was deleted; None where there never was one."""
        damage = f"{self.url}: is missing"
        if not (versions := self._versions(damage)):
            return None
        self._last = _Found(document=self._last_good(f"{self.url}: was deleted", versions))
        return self._last

    def _versions(self, damage: str) -> list[str]:
        """Return the ids of the object's last versions, newest first; none where the bucket keeps none."""
        with _s3_errors(f"{damage}; its versions"):
            pages = self.client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=self.key)
            found = [each for page in pages for each in page.get("Versions", ()) if each.get("Key") == self.key]
        return [each["VersionId"] for each in found[:EARLIER_VERSIONS]]  # S3 lists the newest first

    def _last_good(self, damage: str, versions: Sequence[str]) -> RolloutDocument:
        """Return the newest version of the object that is a document; the next change writes it as the current one.

        Raises:
            RolloutError: there is none, or a newer version of observatory wrote the document, with a revision later
                than that of every document that is known.
        """
        revision = -1  # the latest of the versions that are no document of this program
        for id_ in versions:
            with _s3_errors(f"{damage}; its version {id_}"):
                content = self.client.get_object(Bucket=self.bucket, Key=self.key, VersionId=id_)["Body"].read()
            try:
                document = RolloutDocument.model_validate_json(content)
            except ValidationError:
                revision = max(revision, number_in(content, "revision"))
                continue
            if document.revision < revision:
                raise RolloutError(f"{damage}; {NEWER}")
            self.problem = f"{damage}. Its version {id_} with revision {document.revision} is used"
            return document
        raise RolloutError(f"{damage}; restore it from an earlier version of the object")


@dataclass(frozen=True, kw_only=True)
class S3ReleaseStore:
    """`<version>.tar.gz` and `<version>.json` at a bucket's root, where fleets' machines may read them.

    A stored version never changes. The manifest is written last: an artifact without one is not stored.
    """

    client: S3Client = field(repr=False)
    bucket: str

    def manifest(self, version: str) -> Manifest:
        """Return the manifest of a stored version.

        Raises:
            ReleaseError: there is none, it is damaged, or S3 does not answer.
        """
        found = self._manifest(version)
        if found is None:
            stored = ", ".join(self.versions()) or "none"
            raise ReleaseError(f"release {version} is not in s3://{self.bucket} (stored: {stored}); add it first")
        return found

    def versions(self) -> tuple[str, ...]:
        """Return the stored versions.

        Raises:
            ReleaseError: S3 does not answer.
        """
        with _s3_errors(f"s3://{self.bucket}", ReleaseError):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix="v", Delimiter="/")
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return tuple(sorted(key.removesuffix(".json") for key in keys if key.endswith(".json")))

    def checked(self, version: str, trusted: Mapping[str, str]) -> Manifest:
        """Return a stored version's manifest, after checking its artifact and signature again.

        Raises:
            ReleaseError: the artifact is damaged, no trusted key signed the manifest, or S3 does not answer.
        """
        manifest = self.manifest(version)
        manifest.signed_by(trusted)
        place = f"s3://{self.bucket}/{_artifact(version)}"
        with _s3_errors(place, ReleaseError):
            kept = self._head(version)
        if kept.get("ChecksumSHA256") != _checksum(manifest.sha256):
            raise ReleaseError(
                f"{place}: SHA-256 is not {manifest.sha256}, as its manifest says; add the release again"
            )
        return manifest

    def add(self, artifact: Path, manifest_file: Path, trusted: Mapping[str, str]) -> Manifest:
        """Store a release; adding the same release again replaces its signature only.

        Args:
            artifact: the release's artifact.
            manifest_file: its signed manifest.
            trusted: public keys by name, one of which must have signed it.

        Raises:
            ReleaseRefusedError: no trusted key signed it, or the version is stored with another digest.
            ReleaseError: the artifact does not have its manifest's digest, or S3 does not answer.
        """
        manifest = vetted(artifact, manifest_file, trusted)
        manifest.must_be_the_stored(self._stored(manifest.version))
        with artifact.open("rb") as content:
            self._put(
                _artifact(manifest.version),
                content,
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=_checksum(manifest.sha256),
            )
        self._put(f"{manifest.version}.json", manifest_file.read_bytes(), ContentType="application/json")
        return manifest

    def _manifest(self, version: str) -> Manifest | None:
        place = f"s3://{self.bucket}/{version}.json"
        with _s3_errors(place, ReleaseError):
            content = _content(self.client, self.bucket, f"{version}.json")
        return None if content is None else stored_manifest(version, content, place)

    def _stored(self, version: str) -> str | None:
        """Return the digest of a stored version's artifact, None where it is not stored.

        Where the manifest is damaged, or that of another version, the artifact beside it decides.
        """
        try:
            found = self._manifest(version)
        except ReleaseError:
            return self._digest(version)
        return found.sha256 if found else None

    def _digest(self, version: str) -> str | None:
        """Return the digest of an artifact; None where there is none, or S3 keeps none with it."""
        with _s3_errors(f"s3://{self.bucket}/{_artifact(version)}", ReleaseError):
            try:
                kept = self._head(version).get("ChecksumSHA256")
            except ClientError as error:
                if _code(error) in MISSING:
                    return None
                raise
        return base64.b64decode(kept).hex() if kept else None

    def _head(self, version: str) -> HeadObjectOutputTypeDef:
        return self.client.head_object(Bucket=self.bucket, Key=_artifact(version), ChecksumMode="ENABLED")

    def _put(self, key: str, content: Any, **options: Any) -> None:
        with _s3_errors(f"s3://{self.bucket}/{key}", ReleaseError):
            self.client.put_object(Bucket=self.bucket, Key=key, Body=content, **options)


@dataclass(frozen=True, kw_only=True)
class S3Approvals:
    """A stack's approvals: an object for each version in the release bucket, which all checkouts share."""

    client: S3Client = field(repr=False)
    bucket: str
    stack: str

    def read(self, manifest: Manifest) -> Approval | None:
        """Return the approval of a release; None where this artifact is not approved.

        Raises:
            ReleaseError: the record is damaged, or S3 does not answer.
        """
        place = f"s3://{self.bucket}/{self._key(manifest.version)}"
        with _s3_errors(place, ReleaseError):
            content = _content(self.client, self.bucket, self._key(manifest.version))
        return None if content is None else approval_of(manifest, content, place)

    def write(self, approval: Approval) -> None:
        """Store an approval; it replaces an earlier one of the version.

        Raises:
            ReleaseError: S3 does not answer.
        """
        key = self._key(approval.version)
        with _s3_errors(f"s3://{self.bucket}/{key}", ReleaseError):
            body = approval.model_dump_json(indent=2).encode()
            self.client.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType="application/json")

    def _key(self, version: str) -> str:
        return f"approvals/{self.stack}/{version}.json"


def _content(client: S3Client, bucket: str, key: str) -> bytes | None:
    """Return an object, or None where there is none."""
    try:
        return client.get_object(Bucket=bucket, Key=key)["Body"].read()
    except ClientError as error:
        if _code(error) in MISSING:
            return None
        raise


def _artifact(version: str) -> str:
    return f"{version}.tar.gz"


def _checksum(sha256: str) -> str:
    """Return a digest in S3's form. S3 checks the content against it and keeps it with the object."""
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def _s3_errors(place: str, kind: type[Exception] = RolloutError) -> AbstractContextManager[None]:
    """Raise `kind` for an error of S3, with the place and what to check."""
    return aws_errors(place, kind, remedy=REMEDY)
