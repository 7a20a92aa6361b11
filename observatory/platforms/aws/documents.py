"""A stack's rollout document, releases and approvals on AWS: objects of its release bucket.

A document changes by S3's conditional writes alone: the first condition that S3 finds true wins, for all readers at
once. (https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html)
"""

from __future__ import annotations

import base64
import contextlib
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import ValidationError

from observatory.delivery.approvals import Approval, approval_of
from observatory.delivery.releases import Manifest, ReleaseError, parse_manifest, vetted
from observatory.documents.rollout import RolloutDocument, RolloutError, StaleRolloutError, successor
from observatory.documents.validation import problems

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

WRITER = "writer"  # metadata of the document: which write made it
MISSING = frozenset({"NoSuchKey", "404"})
CONDITION_FAILED = frozenset({"PreconditionFailed", "ConditionalRequestConflict", *MISSING})
REMEDY = "are credentials for this account at hand (`aws sts get-caller-identity`), and may they use the bucket?"


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The document that stands, what S3 names this state of it, and which write made it."""

    document: RolloutDocument
    etag: str
    writer: str | None


@dataclass(kw_only=True)
class S3RolloutStore:
    """The rollout document of one stack as an object, changed by compare-and-set on its ETag.

    What was read last is remembered until it is changed, so that the change itself need not read it again: a rollback
    asks a dozen times, and users wait for it.
    """

    client: S3Client = field(repr=False)
    bucket: str
    key: str
    _last: _Found | None = field(default=None, init=False, repr=False)

    @property
    def url(self) -> str:
        """Where the document is."""
        return f"s3://{self.bucket}/{self.key}"

    def read(self) -> RolloutDocument | None:
        """Return the document, or None where none was written yet.

        Raises:
            RolloutError: S3 cannot be asked, or the document is damaged.
        """
        found = self._find()
        return found.document if found else None

    def compare_and_set(self, expected: RolloutDocument, changed: RolloutDocument) -> RolloutDocument:
        """Replace `expected` by `changed` and return what was written, its revision raised by one.

        Raises:
            StaleRolloutError: the document is not `expected` any more, or carries a newer fencing number.
            RolloutError: S3 cannot be asked; then it may have been written or not, and `read` tells.
        """
        found = self._last if self._last and self._last.document == expected else self._find()
        self._last = None
        written = successor(found.document if found else None, expected, changed, place=self.url)
        assert found is not None  # noqa: S101 - nothing has no successor
        writer = uuid.uuid4().hex
        with _asking(self.url):
            try:
                self.client.put_object(
                    Bucket=self.bucket,
                    Key=self.key,
                    Body=written.model_dump_json(indent=2).encode(),
                    ContentType="application/json",
                    Metadata={WRITER: writer},
                    IfMatch=found.etag,
                )
            except ClientError as error:
                if _code(error) not in CONDITION_FAILED:
                    raise
                self._settle(writer)
        return written

    def exclusive(self) -> AbstractContextManager[None]:
        """Exclude nobody: a lease would outlive its holder. `converge` reads the document again after it told."""
        return nullcontext()

    def _settle(self, writer: str) -> None:
        """Tell a write that lost from one whose first answer was lost: the client sent that again, and it met itself.

        Raises:
            StaleRolloutError: it lost.
        """
        standing = self._find()
        if standing is None or standing.writer != writer:
            raise StaleRolloutError(f"{self.url}: somebody else wrote at the same time; read it again")

    def _find(self) -> _Found | None:
        with _asking(self.url):
            try:
                answer = self.client.get_object(Bucket=self.bucket, Key=self.key)
                content = answer["Body"].read()
            except ClientError as error:
                if _code(error) in MISSING:
                    return None
                raise
        try:
            document = RolloutDocument.model_validate_json(content)
        except ValidationError as error:
            raise RolloutError(
                f"{self.url}: not a rollout document ({problems(error)}); restore it from an earlier version of the "
                "object"
            ) from error
        self._last = _Found(document=document, etag=answer["ETag"], writer=answer["Metadata"].get(WRITER))
        return self._last


@dataclass(frozen=True, kw_only=True)
class S3ReleaseStore:
    """`<version>.tar.gz` and `<version>.json` at a bucket's root, where fleets' machines may read them.

    A version that is kept has one content for ever. The manifest is written last: what has none is not kept.
    """

    client: S3Client = field(repr=False)
    bucket: str

    def manifest(self, version: str) -> Manifest:
        """Return the manifest of a kept version.

        Raises:
            ReleaseError: there is none, it is damaged, or S3 cannot be asked.
        """
        found = self._manifest(version)
        if found is None:
            kept = ", ".join(self.versions()) or "none"
            raise ReleaseError(f"release {version} is not in s3://{self.bucket} (kept: {kept}); add it first")
        return found

    def versions(self) -> tuple[str, ...]:
        """Return the kept versions.

        Raises:
            ReleaseError: S3 cannot be asked.
        """
        with _asking(f"s3://{self.bucket}", ReleaseError):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix="v", Delimiter="/")
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return tuple(sorted(key.removesuffix(".json") for key in keys if key.endswith(".json")))

    def checked(self, version: str, trusted: Mapping[str, str]) -> Manifest:
        """Return the manifest of a kept version that is whole and signed by somebody trusted, whoever added it.

        Raises:
            ReleaseError: it is not, or S3 cannot be asked.
        """
        manifest = self.manifest(version)
        manifest.signed_by(trusted)
        place = f"s3://{self.bucket}/{_artifact(version)}"
        with _asking(place, ReleaseError):
            kept = self.client.head_object(Bucket=self.bucket, Key=_artifact(version), ChecksumMode="ENABLED")
        if kept.get("ChecksumSHA256") != _checksum(manifest.sha256):
            raise ReleaseError(
                f"{place}: SHA-256 is not {manifest.sha256}, as its manifest says; add the release again"
            )
        return manifest

    def add(self, artifact: Path, manifest_file: Path, trusted: Mapping[str, str]) -> Manifest:
        """Keep a release; the same one again changes nothing but its signature.

        Args:
            artifact: to be kept.
            manifest_file: what it says of itself.
            trusted: public keys by their names, one of which has signed it.

        Raises:
            ReleaseRefusedError: nobody trusted has signed it, or the version is kept with another digest.
            ReleaseError: the artifact does not have its manifest's digest, or S3 cannot be asked.
        """
        manifest = vetted(artifact, manifest_file, trusted)
        if kept := self._manifest(manifest.version):
            kept.must_be_the_same_as(manifest)
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
        with _asking(place, ReleaseError):
            content = _content(self.client, self.bucket, f"{version}.json")
        return None if content is None else parse_manifest(content, place)

    def _put(self, key: str, content: Any, **options: Any) -> None:
        with _asking(f"s3://{self.bucket}/{key}", ReleaseError):
            self.client.put_object(Bucket=self.bucket, Key=key, Body=content, **options)


@dataclass(frozen=True, kw_only=True)
class S3Approvals:
    """A stack's approvals, an object for each version in the release bucket: whoever deploys sees what others gave."""

    client: S3Client = field(repr=False)
    bucket: str
    stack: str

    def read(self, manifest: Manifest) -> Approval | None:
        """Return the approval of a release, or None where nobody has approved this artifact.

        Raises:
            ReleaseError: the record is damaged, or S3 cannot be asked.
        """
        place = f"s3://{self.bucket}/{self._key(manifest.version)}"
        with _asking(place, ReleaseError):
            content = _content(self.client, self.bucket, self._key(manifest.version))
        return None if content is None else approval_of(manifest, content, place)

    def write(self, approval: Approval) -> None:
        """Keep an approval; an earlier one of the version is replaced.

        Raises:
            ReleaseError: S3 cannot be asked.
        """
        key = self._key(approval.version)
        with _asking(f"s3://{self.bucket}/{key}", ReleaseError):
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
    """Return a digest as S3 spells it; it checks what arrives against it, and keeps it with the object."""
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


@contextlib.contextmanager
def _asking(place: str, kind: type[Exception] = RolloutError) -> Iterator[None]:
    """Say of every answer that is none where it was asked for, and what to look at."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise kind(f"{place}: {error}; {REMEDY}") from error
