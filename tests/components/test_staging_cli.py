"""Staging on the Pulumi CLI, with a stand-in cloud behind the real provider protocol."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from observatory.delivery.releases import Manifest
from observatory.documents.rollout import RolloutDocument
from observatory.platforms.aws.clients import client
from observatory.settings import AwsSettings, load_file
from tests.support.aws import REGION, aws_on_loopback
from tests.support.checkout import SOURCE, Checkout
from tests.support.cloud import PACKAGES, Cloud, serve
from tests.support.declared import WEIGHTS, rollout
from tests.support.machine import boots_database, loopback_network

pytestmark = pytest.mark.cli


@pytest.fixture
def staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """A checkout whose stack `staging` has its database's address on this machine."""
    monkeypatch.setenv("PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION", "true")
    checkout = Checkout.copy(tmp_path, rootfs=None)
    (checkout.root / ".venv").symlink_to(sys.prefix)
    network = load_file(checkout.root / "Pulumi.staging.yaml").model_dump(mode="json")["network"]
    checkout.configure("staging", network={**network, "cidr": loopback_network()})
    return checkout


@pytest.fixture
def cloud(staging: Checkout, rootfs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """The stand-in for AWS, to which every CLI of the test is attached."""
    settings = load_file(staging.root / "Pulumi.staging.yaml")
    assert isinstance(settings, AwsSettings)
    with ExitStack() as running:
        clouds = {package: Cloud(boots_database(rootfs, settings, running)) for package in PACKAGES}
        monkeypatch.setenv("PULUMI_DEBUG_PROVIDERS", running.enter_context(serve(clouds)))
        yield clouds["aws"]


Deliver = Callable[[RolloutDocument], None]


@pytest.fixture
def deliver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Deliver]:
    """The stack's release bucket, with manifests; writes a rollout document into it, as a delivery does."""
    settings = load_file(SOURCE / "Pulumi.staging.yaml")
    assert isinstance(settings, AwsSettings)
    bucket, key = settings.release_bucket, settings.rollout_key("staging")
    with aws_on_loopback() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        s3 = client("s3", REGION)
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        first, later = settings.first_rollout, rollout()
        for version, sha256 in ((state.version, state.sha256) for state in (first, later.blue, later.green)):
            manifest = Manifest(name="storage-service", version=version, sha256=sha256, schema_min=3, schema_max=99)
            s3.put_object(Bucket=bucket, Key=f"{version}.json", Body=manifest.model_dump_json().encode())

        def put(document: RolloutDocument) -> None:
            s3.put_object(Bucket=bucket, Key=key, Body=document.model_dump_json().encode())

        yield put


def test_the_command_previews_staging_by_the_cli_and_the_document_in_its_bucket(
    cloud: Cloud, staging: Checkout, deliver: Deliver
) -> None:
    deliver(rollout())
    plan = staging.json("preview", "-e", "staging", "--engine", "cli")
    assert plan["engine"] == "cli"
    assert not plan["offline"]
    assert set(plan["summary"]) == {"create"}
    assert cloud.changes == 0
    schema = next(step for step in plan["steps"] if step["name"] == "schema")
    assert schema["pending_migrations"]
    rule = next(step for step in plan["steps"] if step["name"] == "service" and step["type"].endswith(":ListenerRule"))
    (actions,) = [change["new"] for change in rule["changes"] if change["path"] == "actions"]
    assert [group["weight"] for group in actions[0]["forward"]["targetGroups"]] == [WEIGHTS["blue"], WEIGHTS["green"]]
    assert not any("first values" in note for note in plan["notes"])
    assert not (staging.root / ".observatory/backend").exists()


@pytest.mark.usefixtures("cloud")
def test_without_credentials_the_cli_plans_nothing_that_is_only_assumed(
    staging: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    said = staging.run("preview", "-e", "staging", "--engine", "cli", expect=1).stderr
    assert "s3://llm-observatory-releases-444455556666/rollout/staging.json" in said
    assert "Unable to locate credentials" in said


def test_staging_comes_up_is_unchanged_after_a_deployment_and_keeps_protected_resources(
    cloud: Cloud, staging: Checkout, deliver: Deliver
) -> None:
    up = staging.json("up", "-e", "staging")
    assert set(up["summary"]) == {"create"}
    made = cloud.changes
    outputs = staging.json("outputs", "-e", "staging", "--show-secrets")
    assert outputs["schema_version"] == max(int(file.name[:3]) for file in (SOURCE / "migrations").glob("*.sql"))
    with psycopg.connect(outputs["database_urls"]["admin_a"]) as admin:  # verifies the server, as its URL says
        may = "SELECT has_table_privilege('readonly_a', 'llm_traces', %s)"
        assert [admin.execute(may, [what]).fetchone() for what in ("SELECT", "DELETE")] == [(True,), (False,)]
    # Where the owner's login is, the state keeps secret.
    assert staging.json("deploy", "database", "--dry-run", "-e", "staging")["pending"] == []
    sample = staging.json("data", "sample", "--from", "staging", "--to", "staging", expect=3)
    assert "Source and target are the same database" in sample["error"]["message"]
    deliver(rollout().with_weight("green", 100))
    assert set(staging.json("up", "-e", "staging")["summary"]) == {"same"}
    assert cloud.changes == made
    assert staging.json("outputs", "-e", "staging")["active_fleet"] == "green"
    assert "protect" in staging.run("down", "-e", "staging", "--yes", expect=1).stderr
    assert "backups" in cloud.named("aws:s3/bucket:Bucket")
