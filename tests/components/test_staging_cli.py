"""Staging on the Pulumi CLI, with a stand-in cloud behind the real provider protocol."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from observatory.aws_settings import AwsSettings
from observatory.settings import load_file
from tests.support.checkout import SOURCE, Checkout
from tests.support.cloud import PACKAGES, Cloud, serve
from tests.support.machine import boots_database, loopback_network

pytestmark = [
    pytest.mark.cli,
    pytest.mark.skipif(shutil.which("pulumi") is None, reason="needs the pulumi CLI on PATH"),
]


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


def test_the_command_previews_staging_by_the_cli(cloud: Cloud, staging: Checkout) -> None:
    plan = staging.json("preview", "-e", "staging")
    assert plan["engine"] == "cli"
    assert not plan["offline"]
    assert set(plan["summary"]) == {"create"}
    assert cloud.changes == 0
    schema = next(step for step in plan["steps"] if step["name"] == "schema")
    assert schema["pending_migrations"]


def test_staging_goes_up_whole_finds_itself_unchanged_and_keeps_what_is_protected(
    cloud: Cloud, staging: Checkout
) -> None:
    up = staging.json("up", "-e", "staging")
    assert set(up["summary"]) == {"create"}
    made = cloud.changes
    outputs = staging.json("outputs", "-e", "staging", "--show-secrets")
    assert outputs["schema_version"] == max(int(file.name[:3]) for file in (SOURCE / "migrations").glob("*.sql"))
    with psycopg.connect(outputs["database_urls"]["admin_a"]) as admin:  # verifies the server, as its URL says
        may = "SELECT has_table_privilege('readonly_a', 'llm_traces', %s)"
        assert [admin.execute(may, [what]).fetchone() for what in ("SELECT", "DELETE")] == [(True,), (False,)]
    assert set(staging.json("up", "-e", "staging")["summary"]) == {"same"}
    assert cloud.changes == made
    assert "protect" in staging.run("down", "-e", "staging", "--yes", expect=1).stderr
    assert "backups" in cloud.named("aws:s3/bucket:Bucket")
