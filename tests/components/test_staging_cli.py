"""Staging on the Pulumi CLI, with a stand-in cloud behind the real provider protocol."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.lab import Lab
from tests.support.checkout import SOURCE, Checkout
from tests.support.cloud import PACKAGES, Cloud, serve

pytestmark = [
    pytest.mark.cli,
    pytest.mark.skipif(shutil.which("pulumi") is None, reason="needs the pulumi CLI on PATH"),
]

FOUNDATION = f"""
from pathlib import Path
import pulumi_aws as aws
from components.aws.backups import Backups, BackupsArgs
from components.aws.encryption import Encryption, EncryptionArgs
from components.aws.firewall import Firewall, FirewallArgs
from components.aws.network import Network, NetworkArgs
from observatory.settings import load_file

settings = load_file(Path({str(SOURCE / "Pulumi.staging.yaml")!r}))
account = aws.Provider("aws", region=settings.account.region)
there = Options(providers=[account])
network = Network("network", NetworkArgs(stack="staging", settings=settings), there)
Firewall("firewall", FirewallArgs(stack="staging", settings=settings, vpc_id=network.vpc_id), there)
encryption = Encryption("encryption", EncryptionArgs(stack="staging", settings=settings), there)
backups = Backups("backups", BackupsArgs(stack="staging", settings=settings, encryption=encryption), there)
pulumi.export("vpc", network.vpc_id)
pulumi.export("backup_stores", backups.stores)
"""


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """The stand-in for AWS, to which every CLI of the test is attached."""
    clouds = {package: Cloud() for package in PACKAGES}
    with serve(clouds) as attached:
        monkeypatch.setenv("PULUMI_DEBUG_PROVIDERS", attached)
        yield clouds["aws"]


def test_the_command_previews_staging_by_the_cli(cloud: Cloud, tmp_path: Path) -> None:
    checkout = Checkout.copy(tmp_path, rootfs=None)
    (checkout.root / ".venv").symlink_to(sys.prefix)
    plan = checkout.json("preview", "-e", "staging", PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION="true")
    assert plan["engine"] == "cli"
    assert not plan["offline"]
    assert set(plan["summary"]) == {"create"}
    assert cloud.changes == 0
    schema = next(step for step in plan["steps"] if step["name"] == "schema")
    assert schema["pending_migrations"]


def test_what_lies_under_staging_goes_up_finds_itself_unchanged_and_keeps_what_is_protected(
    cloud: Cloud, tmp_path: Path
) -> None:
    lab = Lab(tmp_path / "lab")
    lab.program(FOUNDATION)
    up = lab.cli("up")
    assert not up.failed, up.message
    assert cloud.named("aws:ec2/vpc:Vpc") == ["network"]
    made = cloud.changes
    assert lab.cli("preview").steps == []
    assert lab.cli("up").steps == []
    assert cloud.changes == made
    gone = lab.cli("destroy")
    assert gone.failed
    assert "protect" in gone.message
    assert "backups" in cloud.named("aws:s3/bucket:Bucket")
