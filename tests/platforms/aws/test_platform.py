"""The platform object of a stack on AWS: stores, delivery environment, administrator, checks before an `up`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from observatory import operations
from observatory.delivery.control import send_control_request
from observatory.delivery.environment import Environment
from observatory.delivery.errors import DeliveryRefusedError, RollbackFailedError
from observatory.delivery.releases import Manifest, ReleaseError
from observatory.delivery.rollback import roll_back
from observatory.documents.rollout import Deployment, RolloutDocument
from observatory.engines.embedded.backend import StackFiles
from observatory.platforms import platform_of
from observatory.platforms.aws.clients import client
from observatory.platforms.delivery_environment import delivery_environment
from observatory.progress import Progress
from observatory.security.signatures import make_private_key, public_key
from observatory.settings import AwsSettings, load_file
from observatory.workspace import Workspace
from tests.delivery.environment import NEW, OLD
from tests.delivery.test_releases import TRUSTED, release
from tests.support.aws import REGION
from tests.support.checkout import SOURCE, Checkout

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from pathlib import Path

    from mypy_boto3_s3 import S3Client

    from observatory.platforms.aws.balancer import AlbBalancer

WORKSPACE = Workspace(root=SOURCE, stack="staging")


class Silent:
    """A journal that drops its entries."""

    def record(self, event: str, **details: Any) -> None:
        pass


def environment_of(settings: AwsSettings, outputs: dict[str, Any]) -> Environment:
    return delivery_environment(platform_of(WORKSPACE, settings), outputs, journal=Silent())


@pytest.fixture
def settings() -> AwsSettings:
    found = load_file(WORKSPACE.config_file)
    assert isinstance(found, AwsSettings)
    return found


@pytest.fixture
def bucket(s3: S3Client, settings: AwsSettings) -> Iterator[str]:
    """The stack's release bucket."""
    name = settings.release_bucket
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    yield name
    kept = s3.list_object_versions(Bucket=name)
    for entry in (*kept.get("Versions", ()), *kept.get("DeleteMarkers", ())):
        s3.delete_object(Bucket=name, Key=entry["Key"], VersionId=entry["VersionId"])
    s3.delete_bucket(Bucket=name)


@pytest.fixture
def outputs(balancer: AlbBalancer) -> dict[str, Any]:
    """The stack's outputs that deliveries use."""
    fleets = {
        fleet: {"group": f"{fleet}-1", "target_group": arn, "preview_group": f"{arn}-preview", "size": 1}
        for fleet, arn in balancer.target_groups.items()
    }
    return {
        "preview_url": "https://preview.storage.example.com",
        "prometheus_url": "http://127.0.0.1:1",
        "alertmanager_url": "http://127.0.0.1:1",
        "api_key": "[secret]",
        "admin_database_url": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:nobodys",
        "delivery": {"rule": balancer.rule, "fleets": fleets},
    }


def shifting() -> RolloutDocument:
    """Return the document of a deployment to green at its second step."""
    first = RolloutDocument.first(version="v0.1.0", sha256=OLD, active_fleet="blue")
    deployment = Deployment(
        id="d1", version="v0.2.0", sha256=NEW, strategy="canary", source="blue", target="green", weights=(5, 100),
        bake_s=60, health_check_s=0, step=0, status="shifting", actor="me", started=0, before=first.green,
    )  # fmt: skip
    moved = first.with_fleet("green", version="v0.2.0", sha256=NEW).with_weight("green", 5)
    return moved.model_copy(update={"deployment": deployment, "fencing": 1})


Moving = Callable[[], RolloutDocument]


@pytest.fixture
def moving(s3: S3Client, bucket: str, balancer: AlbBalancer) -> Moving:
    """A deployment under way; returns the function that reads the current document."""
    place = {"Bucket": bucket, "Key": "rollout/staging.json"}
    s3.put_object(**place, Body=shifting().model_dump_json().encode())  # type: ignore[arg-type]
    balancer.set_weights({"blue": 95, "green": 5})
    return lambda: RolloutDocument.model_validate_json(s3.get_object(**place)["Body"].read())  # type: ignore[arg-type]


def test_a_rollback_returns_traffic_by_document_and_rule(
    settings: AwsSettings, outputs: dict[str, Any], moving: Moving, balancer: AlbBalancer
) -> None:
    balancer.client.register_targets(
        TargetGroupArn=balancer.target_groups["blue"], Targets=[{"Id": "i-0", "Port": 8100}]
    )
    done = roll_back(environment_of(settings, outputs), actor="me", reason="latency")
    assert done == moving()
    assert done.deployment is not None
    assert (done.deployment.status, done.fencing, done.green.version) == ("rolled-back", 2, "v0.1.0")
    assert balancer.weights() == done.weights == {"blue": 100, "green": 0}


@pytest.mark.usefixtures("moving")
def test_a_rollback_to_a_fleet_without_machines_needs_force_and_escalates(
    settings: AwsSettings, outputs: dict[str, Any], balancer: AlbBalancer
) -> None:
    with pytest.raises(DeliveryRefusedError, match=r"no instance of blue.*it has no machine.*blue has 95 %"):
        roll_back(environment_of(settings, outputs), actor="me", reason="latency")
    assert balancer.weights() == {"blue": 95, "green": 5}
    with pytest.raises(RollbackFailedError, match=r"all traffic is back on blue .* but blue is not healthy"):
        roll_back(environment_of(settings, outputs), actor="me", reason="latency", force=True)
    assert balancer.weights() == {"blue": 100, "green": 0}


def test_a_control_request_reaches_the_document(settings: AwsSettings, outputs: dict[str, Any], moving: Moving) -> None:
    send_control_request(environment_of(settings, outputs), "pause")
    paused = moving().deployment
    assert paused is not None
    assert paused.request == "pause"


def test_a_stack_of_an_earlier_program_is_refused(settings: AwsSettings, outputs: dict[str, Any]) -> None:
    del outputs["delivery"]
    with pytest.raises(DeliveryRefusedError, match="`observatory up` first"):
        environment_of(settings, outputs)


def test_the_administrators_url_is_read_from_the_secret_store(settings: AwsSettings, outputs: dict[str, Any]) -> None:
    url = "postgresql://postgres:s3cr3t@10.30.128.10:5432/postgres?sslmode=verify-full"
    kept = client("secretsmanager", REGION).create_secret(Name="administrator", SecretString=json.dumps({"url": url}))
    conninfo = platform_of(WORKSPACE, settings).administrator({**outputs, "admin_database_url": kept["ARN"]})
    assert "dbname=observatory" in conninfo
    assert "password=s3cr3t" in conninfo


def test_an_unreadable_secret_is_reported(settings: AwsSettings, outputs: dict[str, Any]) -> None:
    with pytest.raises(DeliveryRefusedError, match=r"secret:nobodys cannot be read: .*ResourceNotFound"):
        platform_of(WORKSPACE, settings).administrator(outputs)


@pytest.mark.usefixtures("bucket")
def test_a_missing_release_is_reported_before_any_machine_is_created(
    s3: S3Client, settings: AwsSettings, tmp_path: Path
) -> None:
    workspace = Workspace(root=tmp_path, stack="staging")
    for file in (WORKSPACE.config_file, WORKSPACE.root / "Pulumi.yaml"):
        shutil.copy(file, tmp_path)
    with pytest.raises(ReleaseError, match=r"release v0\.2\.0 is not in s3://.* add it first"):
        operations.bootstrap(workspace)
    manifest = Manifest(name="storage-service", version="v0.2.0", sha256=OLD, schema_min=3, schema_max=6)
    s3.put_object(Bucket=settings.release_bucket, Key="v0.2.0.json", Body=manifest.model_dump_json().encode())
    with pytest.raises(ReleaseError, match=f"the stored release has {OLD}"):
        operations.bootstrap(workspace)
    assert {path.name for path in tmp_path.iterdir()} == {"Pulumi.staging.yaml", "Pulumi.yaml"}


def test_a_deleted_document_is_written_again_before_machines_need_it(
    s3: S3Client, settings: AwsSettings, moving: Moving
) -> None:
    place, document = {"Bucket": settings.release_bucket, "Key": "rollout/staging.json"}, moving()
    s3.put_bucket_versioning(Bucket=settings.release_bucket, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(**place, Body=document.model_dump_json().encode())  # type: ignore[arg-type]
    s3.delete_object(**place)  # type: ignore[arg-type]
    reports: list[Progress] = []
    with pytest.raises(ReleaseError, match="is not in s3://"):
        platform_of(WORKSPACE, settings).prepare(reports.append)
    assert ["was deleted" in report.task for report in reports] == [True]
    assert moving() == document.model_copy(update={"revision": document.revision + 1})


APPROVER_KEY = make_private_key()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose staging trusts the tests' key."""
    found = Checkout.copy(tmp_path_factory.mktemp("aws"), rootfs=None)
    file = found.root / "Pulumi.staging.yaml"
    document = yaml.safe_load(file.read_text())
    document["config"]["llm-observatory:delivery"] = {
        "trusted_keys": TRUSTED,
        "trusted_approvers": {"alice": public_key(APPROVER_KEY)},
    }
    file.write_text(yaml.safe_dump(document))
    return found


def test_releases_are_stored_in_the_stacks_bucket_and_deployed_once_it_is_up(
    checkout: Checkout, s3: S3Client, bucket: str, tmp_path: Path
) -> None:
    artifact, _ = release(tmp_path)
    added = checkout.json("release", "add", str(artifact), "-e", "staging")
    (kept,) = checkout.json("release", "list", "-e", "staging")
    assert (kept["version"], kept["sha256"]) == (added["version"], added["sha256"])
    assert s3.get_object(Bucket=bucket, Key="v0.1.0.tar.gz")["Body"].read() == b"artifact"
    assert checkout.json("release", "list") == []  # of `local`
    key = tmp_path / "alice.pem"
    key.write_text(APPROVER_KEY)
    checkout.run("release", "approve", "v0.1.0", "-e", "staging", "--key", str(key), "--reason", "reviewed")
    assert b"reviewed" in s3.get_object(Bucket=bucket, Key="approvals/staging/v0.1.0.json")["Body"].read()
    wanted = ("deploy", "application", "--version", "v0.1.0", "--strategy", "blue-green", "-e", "staging")
    assert "'staging' is not up" in checkout.run(*wanted, expect=3).stderr


@pytest.fixture
def _up(checkout: Checkout, outputs: dict[str, Any]) -> Iterator[None]:
    """The state of the stack, as the last `up` left it."""
    files = StackFiles(root=checkout.root / ".observatory" / "backend", project="llm-observatory", stack="staging")
    stack = {"urn": "urn:pulumi:staging::llm-observatory::pulumi:pulumi:Stack::s", "type": "pulumi:pulumi:Stack"}
    files.write(json.dumps({"resources": [{**stack, "outputs": outputs}]}), [])
    yield
    files.remove()


@pytest.mark.usefixtures("_up")
def test_the_commands_control_and_undo_a_deployment(checkout: Checkout, moving: Moving, balancer: AlbBalancer) -> None:
    balancer.client.register_targets(TargetGroupArn=balancer.target_groups["blue"], Targets=[{"Id": "i-0"}])
    paused = checkout.json("rollout", "pause", "-e", "staging")
    assert paused["deployment"]["request"] == "pause"
    back = checkout.json("rollback", "--method", "blue-green", "--emergency", "-e", "staging")
    assert back == moving().model_dump(mode="json")
    assert (back["deployment"]["status"], back["fencing"]) == ("rolled-back", 2)
    assert balancer.weights() == {"blue": 100, "green": 0}
    again = checkout.run("rollback", "--method", "blue-green", "--emergency", "-e", "staging", expect=3).stderr
    assert "rolled back already" in again
