"""The rollout document and releases in S3: the same guarantees as on this machine, by conditional writes."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from hypothesis import HealthCheck, given, settings

from observatory.delivery.approvals import Approval
from observatory.delivery.deployment import deploy
from observatory.delivery.errors import DeliveryRefusedError, TakenOverError
from observatory.delivery.releases import ReleaseError, ReleaseRefusedError
from observatory.delivery.rollback import roll_back
from observatory.documents.rollout import RolloutDocument, RolloutError, StaleRolloutError
from observatory.platforms.aws.clients import client
from observatory.platforms.aws.documents import S3Approvals, S3ReleaseStore, S3RolloutStore
from tests.delivery.environment import NEW, OLD, MemoryStore, Simulation
from tests.delivery.faults import SEQUENCES, Sequence, blue_green, ends_decided
from tests.delivery.test_releases import TRUSTED, release
from tests.support.aws import REGION

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

FIRST = RolloutDocument.first(version="v0.1.0", sha256=OLD, active_fleet="blue")
KEY = "rollout/staging.json"


@pytest.fixture
def store(s3: S3Client, bucket: str) -> S3RolloutStore:
    return S3RolloutStore(client=s3, bucket=bucket, key=KEY)


@pytest.fixture
def current(store: S3RolloutStore) -> RolloutDocument:
    """The document as the first `up` writes it."""
    store.client.put_object(Bucket=store.bucket, Key=KEY, Body=FIRST.model_dump_json().encode())
    return FIRST


def test_a_stack_without_a_document_has_none(store: S3RolloutStore) -> None:
    assert store.read() is None
    with pytest.raises(StaleRolloutError, match="found no document"):
        store.compare_and_set(FIRST, FIRST)


def test_a_change_raises_the_revision(store: S3RolloutStore, current: RolloutDocument) -> None:
    assert store.read() == current
    written = store.compare_and_set(current, current.with_weight("green", 100))
    assert written.revision == 1
    assert store.read() == written


def test_a_stale_revision_is_refused_and_changes_nothing(store: S3RolloutStore, current: RolloutDocument) -> None:
    written = store.compare_and_set(current, current.with_weight("green", 100))
    with pytest.raises(StaleRolloutError, match=f"s3://{store.bucket}/{KEY}: found revision 1, expected revision 0"):
        store.compare_and_set(current, current)
    assert store.read() == written


def test_a_document_read_before_another_write_is_stale(store: S3RolloutStore, current: RolloutDocument) -> None:
    read = store.read()
    assert read is not None
    other = S3RolloutStore(client=store.client, bucket=store.bucket, key=KEY)
    written = other.compare_and_set(current, current.with_weight("green", 100))
    with pytest.raises(StaleRolloutError, match="changed concurrently"):
        store.compare_and_set(read, read)
    assert store.read() == written


def test_an_older_fencing_number_is_refused(store: S3RolloutStore, current: RolloutDocument) -> None:
    newer = store.compare_and_set(current, current.model_copy(update={"fencing": 7}))
    with pytest.raises(StaleRolloutError, match="found fencing number 7, expected at most 6"):
        store.compare_and_set(newer, newer.model_copy(update={"fencing": 6}))


class Between:
    """A client that runs a function once, between the read and the write of a compare-and-set."""

    def __init__(self, real: S3Client, happening: Callable[[], None]) -> None:
        self._real, self._happening = real, happening

    def put_object(self, **options: Any) -> Any:
        happening, self._happening = self._happening, lambda: None
        happening()
        return self._real.put_object(**options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_a_write_between_read_and_write_wins(store: S3RolloutStore, current: RolloutDocument) -> None:
    def other() -> None:
        store.compare_and_set(current, current.model_copy(update={"fencing": 1}))

    slow = S3RolloutStore(client=Between(store.client, other), bucket=store.bucket, key=KEY)  # type: ignore[arg-type]
    with pytest.raises(StaleRolloutError, match="the rollout document changed concurrently"):
        slow.compare_and_set(current, current.model_copy(update={"fencing": 1}))


def test_a_write_whose_answer_was_lost_succeeds(store: S3RolloutStore, current: RolloutDocument) -> None:
    """The client sends it again, and S3 refuses that: the document has changed already."""
    wanted: dict[str, Any] = {}

    class Deaf(Between):
        def put_object(self, **options: Any) -> Any:
            wanted.update(options)
            self._real.put_object(**options)
            return self._real.put_object(**options)

    deaf = S3RolloutStore(client=Deaf(store.client, lambda: None), bucket=store.bucket, key=KEY)  # type: ignore[arg-type]
    written = deaf.compare_and_set(current, current.with_weight("green", 100))
    assert wanted["IfMatch"]
    assert store.read() == written


def test_a_conflict_is_a_lost_race(store: S3RolloutStore, current: RolloutDocument) -> None:
    """S3 answers 409 instead of 412 where two conditional writes meet."""

    class Conflicting(Between):
        def put_object(self, **options: Any) -> Any:
            raise ClientError({"Error": {"Code": "ConditionalRequestConflict"}}, "PutObject")

    meeting = S3RolloutStore(client=Conflicting(store.client, lambda: None), bucket=store.bucket, key=KEY)  # type: ignore[arg-type]
    with pytest.raises(StaleRolloutError):
        meeting.compare_and_set(current, current)


@pytest.mark.parametrize("text", ["", "{", '{"revision": 0}'])
def test_a_damaged_document_is_reported(store: S3RolloutStore, text: str) -> None:
    store.client.put_object(Bucket=store.bucket, Key=KEY, Body=text.encode())
    with pytest.raises(RolloutError, match=rf"{KEY}: not a rollout document .* earlier version"):
        store.read()


def test_a_missing_bucket_is_reported_with_a_remedy(s3: S3Client) -> None:
    with pytest.raises(RolloutError, match=r"s3://nobodys/rollout.*NoSuchBucket.*aws sts get-caller-identity"):
        S3RolloutStore(client=s3, bucket="nobodys", key=KEY).read()


def test_missing_credentials_are_reported(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # which remembers who it was
    with pytest.raises(RolloutError, match="Unable to locate credentials"):
        S3RolloutStore(client=client("s3", REGION), bucket=bucket, key=KEY).read()


def test_a_refused_read_is_no_missing_document(s3: S3Client) -> None:
    with Stubber(s3) as stub:
        stub.add_client_error("get_object", "AccessDenied", http_status_code=403)
        with pytest.raises(RolloutError, match="AccessDenied"):
            S3RolloutStore(client=s3, bucket="theirs", key=KEY).read()


class Shared(MemoryStore):
    """The simulated stack's document, in S3, whose store has no lock: other commands change the balancer meanwhile."""

    def __init__(self, real: S3RolloutStore) -> None:
        real.client.put_object(Bucket=real.bucket, Key=real.key, Body=FIRST.model_dump_json().encode())
        self._real = real
        super().__init__(FIRST)

    def read(self) -> RolloutDocument | None:
        self.document = self._real.read()
        return self.document

    def compare_and_set(self, expected: RolloutDocument, changed: RolloutDocument) -> RolloutDocument:
        self.document = self._real.compare_and_set(expected, changed)
        self.history.append(self.document)
        return self.document

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._real.exclusive():
            yield


@pytest.fixture
def stack(store: S3RolloutStore) -> Simulation:
    return Simulation(Shared(store))


def test_a_version_is_deployed_and_rolled_back(stack: Simulation) -> None:
    deploy(stack.environment(), blue_green())
    assert (stack.live, stack.runs["green-1"]) == ({"blue": 0, "green": 100}, NEW)
    roll_back(stack.environment(), actor="me", reason="latency")
    assert stack.live == {"blue": 100, "green": 0}


def test_of_two_concurrent_deployments_one_is_refused(stack: Simulation, store: S3RolloutStore) -> None:
    def other() -> None:
        deploy(stack.environment(), blue_green(version="v0.3.0", sha256="c" * 64))

    slow = S3RolloutStore(client=Between(store.client, other), bucket=store.bucket, key=KEY)  # type: ignore[arg-type]
    with pytest.raises(DeliveryRefusedError, match="document changed concurrently"):
        deploy(replace(stack.environment(), store=slow), blue_green())
    document = store.read()
    assert document is not None
    assert (document.green.version, document.fencing) == ("v0.3.0", 1)


def test_the_last_change_of_the_balancer_matches_the_document(stack: Simulation) -> None:
    """A deployment pauses between document and balancer, a rollback overtakes it, and then it continues."""
    calls = itertools.count()

    def fault(place: str) -> None:
        if place == "set_weights" and next(calls) == 1:  # the shift, before it reaches the balancer
            roll_back(stack.environment(), actor="other", reason="pages")

    stack.fault = fault
    with pytest.raises(TakenOverError):
        deploy(stack.environment(), blue_green())
    assert stack.live == {"blue": 100, "green": 0}


_documents = itertools.count()


@given(drawn=SEQUENCES.map(lambda drawn: replace(drawn, strategy="canary")))  # AWS has no rolling updates
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_any_sequence_of_faults_ends_promoted_or_rolled_back(s3: S3Client, bucket: str, drawn: Sequence) -> None:
    document = S3RolloutStore(client=s3, bucket=bucket, key=f"rollout/{next(_documents)}.json")
    ends_decided(drawn, Shared(document))


@pytest.fixture
def releases(s3: S3Client, bucket: str) -> S3ReleaseStore:
    return S3ReleaseStore(client=s3, bucket=bucket)


def test_a_release_is_stored_where_machines_read_it(releases: S3ReleaseStore, tmp_path: Path) -> None:
    added = releases.add(*release(tmp_path), TRUSTED)
    assert releases.add(*release(tmp_path), TRUSTED) == added
    assert releases.versions() == ("v0.1.0",)
    assert releases.manifest("v0.1.0") == releases.checked("v0.1.0", TRUSTED) == added
    answer = releases.client.get_object(Bucket=releases.bucket, Key="v0.1.0.tar.gz")
    assert answer["Body"].read() == b"artifact"


def test_other_objects_of_the_bucket_are_not_listed(releases: S3ReleaseStore, tmp_path: Path) -> None:
    for key in ("rollout/staging.json", "v0.9.0.tar.gz", "versions/v0.8.0.json"):
        releases.client.put_object(Bucket=releases.bucket, Key=key, Body=b"{}")
    releases.add(*release(tmp_path), TRUSTED)
    assert releases.versions() == ("v0.1.0",)


def test_an_untrusted_or_damaged_release_is_refused(releases: S3ReleaseStore, tmp_path: Path) -> None:
    with pytest.raises(ReleaseRefusedError, match="is not signed"):
        releases.add(*release(tmp_path, key=None), TRUSTED)
    artifact, manifest = release(tmp_path)
    artifact.write_bytes(b"altered")
    with pytest.raises(ReleaseError, match=r"SHA-256 is .*, expected "):
        releases.add(artifact, manifest, TRUSTED)
    assert releases.versions() == ()


def test_a_version_keeps_its_content(releases: S3ReleaseStore, tmp_path: Path) -> None:
    kept = releases.add(*release(tmp_path), TRUSTED)
    with pytest.raises(ReleaseRefusedError, match="build it with a new version number"):
        releases.add(*release(tmp_path, content=b"another"), TRUSTED)
    assert releases.checked("v0.1.0", TRUSTED) == kept


@pytest.mark.parametrize("artifact_is_lost", [False, True])
def test_adding_a_release_again_repairs_its_manifest(
    releases: S3ReleaseStore, tmp_path: Path, *, artifact_is_lost: bool
) -> None:
    kept = releases.add(*release(tmp_path), TRUSTED)
    releases.client.put_object(Bucket=releases.bucket, Key="v0.1.0.json", Body=b"{")
    with pytest.raises(ReleaseError, match=r"v0\.1\.0\.json: .*: add release v0\.1\.0 again"):
        releases.checked("v0.1.0", TRUSTED)
    with pytest.raises(ReleaseRefusedError, match="is stored with another artifact"):
        releases.add(*release(tmp_path, content=b"another"), TRUSTED)
    if artifact_is_lost:
        releases.client.delete_object(Bucket=releases.bucket, Key="v0.1.0.tar.gz")
    releases.add(*release(tmp_path), TRUSTED)
    assert releases.checked("v0.1.0", TRUSTED) == kept


def test_a_changed_artifact_is_refused_before_it_is_deployed(releases: S3ReleaseStore, tmp_path: Path) -> None:
    releases.add(*release(tmp_path), TRUSTED)
    releases.client.put_object(Bucket=releases.bucket, Key="v0.1.0.tar.gz", Body=b"evil", ChecksumAlgorithm="SHA256")
    with pytest.raises(ReleaseError, match=r"v0\.1\.0\.tar\.gz: SHA-256 is not"):
        releases.checked("v0.1.0", TRUSTED)
    releases.client.delete_object(Bucket=releases.bucket, Key="v0.1.0.tar.gz")
    with pytest.raises(ReleaseError, match=r"v0\.1\.0\.tar\.gz: .*404"):
        releases.checked("v0.1.0", TRUSTED)


def test_a_missing_version_is_reported_with_the_stored_ones(releases: S3ReleaseStore, tmp_path: Path) -> None:
    releases.add(*release(tmp_path), TRUSTED)
    with pytest.raises(ReleaseError, match=rf"v9\.9\.9 is not in s3://{releases.bucket} \(stored: v0\.1\.0\)"):
        releases.manifest("v9.9.9")


def test_a_bucket_that_cannot_be_listed_is_reported(s3: S3Client) -> None:
    with pytest.raises(ReleaseError, match=r"s3://nobodys: .*NoSuchBucket"):
        S3ReleaseStore(client=s3, bucket="nobodys").versions()


def test_an_approval_is_shared_and_covers_one_artifact(releases: S3ReleaseStore, tmp_path: Path) -> None:
    approvals = S3Approvals(client=releases.client, bucket=releases.bucket, stack="staging")
    kept = releases.add(*release(tmp_path), TRUSTED)
    assert approvals.read(kept) is None
    given = Approval(version=kept.version, sha256=kept.sha256, by="ann", at=1.5, reason="reviewed")
    approvals.write(given)
    assert approvals.read(kept) == given
    assert approvals.read(kept.model_copy(update={"sha256": "b" * 64})) is None
    other = S3Approvals(client=releases.client, bucket=releases.bucket, stack="production")
    assert other.read(kept) is None
    assert releases.versions() == ("v0.1.0",)


def test_a_damaged_approval_is_reported(releases: S3ReleaseStore, tmp_path: Path) -> None:
    kept = releases.add(*release(tmp_path), TRUSTED)
    releases.client.put_object(Bucket=releases.bucket, Key="approvals/staging/v0.1.0.json", Body=b"yes")
    with pytest.raises(ReleaseError, match=r"approvals/staging/v0\.1\.0\.json: not an approval"):
        S3Approvals(client=releases.client, bucket=releases.bucket, stack="staging").read(kept)


def test_a_damaged_document_is_read_from_its_last_good_version(store: S3RolloutStore, current: RolloutDocument) -> None:
    store.client.put_bucket_versioning(Bucket=store.bucket, VersioningConfiguration={"Status": "Enabled"})
    written = store.compare_and_set(current, current.with_weight("green", 100))
    store.client.put_object(Bucket=store.bucket, Key=KEY, Body=b"{")
    assert store.read() == written
    assert "not a rollout document" in store.problem
    assert "with revision 1 is used" in store.problem
    again = store.compare_and_set(written, written.with_weight("green", 0))
    assert (store.read(), store.problem) == (again, "")


@pytest.fixture
def versioned(store: S3RolloutStore) -> None:
    store.client.put_bucket_versioning(Bucket=store.bucket, VersioningConfiguration={"Status": "Enabled"})


@pytest.mark.usefixtures("versioned")
def test_a_deleted_document_is_read_from_its_last_good_version(store: S3RolloutStore, current: RolloutDocument) -> None:
    written = store.compare_and_set(current, current.with_weight("green", 100))
    store.client.put_object(Bucket=store.bucket, Key=KEY, Body=b"{")
    store.client.put_object(Bucket=store.bucket, Key=f"{KEY}.old", Body=current.model_dump_json().encode())
    for _ in range(2):
        store.client.delete_object(Bucket=store.bucket, Key=KEY)
    assert store.read() == written
    assert re.search(rf"{KEY}: was deleted\. Its version \S+ with revision 1 is used", store.problem)
    again = store.compare_and_set(written, written.with_weight("green", 0))
    assert (store.read(), store.problem) == (again, "")
    kept = store.client.get_object(Bucket=store.bucket, Key=KEY)["Body"].read()
    assert RolloutDocument.model_validate_json(kept) == again


@pytest.mark.usefixtures("versioned")
def test_a_write_that_loses_against_another_one_of_a_deleted_document_is_stale(
    store: S3RolloutStore, current: RolloutDocument
) -> None:
    store.compare_and_set(current, current)
    store.client.delete_object(Bucket=store.bucket, Key=KEY)
    read, other = store.read(), S3RolloutStore(client=store.client, bucket=store.bucket, key=KEY)
    assert read is not None
    written = other.compare_and_set(read, read.with_weight("green", 100))
    with pytest.raises(StaleRolloutError, match="changed concurrently"):
        store.compare_and_set(read, read)
    assert store.read() == written


def test_a_deleted_document_without_a_good_version_is_named(store: S3RolloutStore, versioned: None) -> None:
    store.client.put_object(Bucket=store.bucket, Key=KEY, Body=b"{")
    store.client.delete_object(Bucket=store.bucket, Key=KEY)
    with pytest.raises(RolloutError, match=f"{KEY}: was deleted; restore it from an earlier version of the object"):
        store.read()


def test_a_deleted_document_of_a_bucket_without_versions_is_gone(
    store: S3RolloutStore, current: RolloutDocument
) -> None:
    store.client.delete_object(Bucket=store.bucket, Key=KEY)
    assert (store.read(), store.problem) == (None, "")


def test_a_missing_document_whose_versions_cannot_be_listed_is_not_taken_for_none(s3: S3Client) -> None:
    with Stubber(s3) as stub:
        stub.add_client_error("get_object", "NoSuchKey", http_status_code=404)
        stub.add_client_error("list_object_versions", "AccessDenied", http_status_code=403)
        with pytest.raises(RolloutError, match=f"{KEY}: is missing; its versions: .*AccessDenied"):
            S3RolloutStore(client=s3, bucket="theirs", key=KEY).read()


@pytest.mark.parametrize("after", ["damaged", "deleted"])
@pytest.mark.usefixtures("versioned")
def test_no_older_document_is_used_in_place_of_a_newer_programs_that_was_lost_later(
    store: S3RolloutStore, current: RolloutDocument, after: str
) -> None:
    written = store.compare_and_set(current, current.with_weight("green", 100))
    newer = json.dumps({**json.loads(written.model_dump_json()), "revision": written.revision + 1, "regions": 2})
    store.client.put_object(Bucket=store.bucket, Key=KEY, Body=newer.encode())
    if after == "damaged":
        store.client.put_object(Bucket=store.bucket, Key=KEY, Body=b"{")
    else:
        store.client.delete_object(Bucket=store.bucket, Key=KEY)
    with pytest.raises(RolloutError, match="if a newer version of observatory has written it, use that"):
        store.read()


def test_a_document_that_a_newer_version_wrote_is_not_replaced_by_an_older_one(
    store: S3RolloutStore, current: RolloutDocument
) -> None:
    store.client.put_bucket_versioning(Bucket=store.bucket, VersioningConfiguration={"Status": "Enabled"})
    written = store.compare_and_set(current, current.with_weight("green", 100))
    newer = json.dumps({**json.loads(written.model_dump_json()), "revision": written.revision + 1, "regions": 2})
    store.client.put_object(Bucket=store.bucket, Key=KEY, Body=newer.encode())
    with pytest.raises(RolloutError, match=r"regions.*if a newer version of observatory has written it, use that"):
        store.read()
