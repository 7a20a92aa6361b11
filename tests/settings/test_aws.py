"""Settings of AWS stacks: the shipped files, and an error for each kind of mistake."""

from collections.abc import Callable
from pathlib import Path

import pytest

from observatory.settings import AwsSettings, SettingsError, architecture_of, load_file

ROOT = Path(__file__).resolve().parents[2]


def shipped(stack: str) -> AwsSettings:
    settings = load_file(ROOT / f"Pulumi.{stack}.yaml")
    assert isinstance(settings, AwsSettings)
    return settings


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[str, str], str]:
    """Return the refusal of production's settings with one text in place of another."""

    def load(old: str, new: str) -> str:
        text = (ROOT / "Pulumi.production.yaml").read_text()
        assert old in text
        file = tmp_path / "Pulumi.production.yaml"
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(SettingsError) as error:
            load_file(file)
        return str(error.value)

    return load


def test_production_spans_three_zones_and_keeps_backups_off_site() -> None:
    production = shipped("production")
    assert len(production.network.availability_zones) == 3
    assert production.backups.off_site_region not in (None, production.account.region)
    assert production.backups.object_lock.mode == "COMPLIANCE"


def test_staging_allows_private_networks_only() -> None:
    staging = shipped("staging")
    assert staging.traffic.internal
    assert all(cidr.is_private for cidr in staging.traffic.allowed_cidrs)


def test_staging_and_production_have_different_accounts_and_networks() -> None:
    staging, production = shipped("staging"), shipped("production")
    assert staging.account.id != production.account.id
    assert not staging.network.cidr.overlaps(production.network.cidr)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("10.20.0.0/16", "10.20.0.0/28", "production.yaml:6: llm-observatory:network: 10.20.0.0/28 is not a private"),
        ("10.20.0.0/16", "8.8.0.0/16", "8.8.0.0/16 is not a private network"),
        ("10.20.0.0/16", "10.20.0.1/16", "network.cidr: 10.20.0.1/16 has host bits set"),
        ("eu-central-1c]", "eu-west-1c]", "network.availability_zones: eu-west-1c is not in region eu-central-1"),
        ("eu-central-1c]", "eu-central-1a]", "network.availability_zones: names eu-central-1a twice: remove one"),
        ("[0.0.0.0/0]", "[10.0.0.0/8, 10.0.0.0/8]", "traffic.allowed_cidrs: names 10.0.0.0/8 twice: remove one"),
        ("60718]", "60718, rtb-0a1b2c3d4e5f60718]", "route_table_ids: names rtb-0a1b2c3d4e5f60718 twice"),
        ("region: eu-central-1", "region: us-gov-west-1", "account.region: us-gov-west-1 is in a partition of AWS"),
        ("off_site_region: eu-west-1", "off_site_region: cn-north-1", "off_site_region: cn-north-1 is in a partition"),
        ("10.0.0.0/16", "10.20.128.0/17", "overlap: peered networks must be disjoint"),
        (
            "    arm64: ami-0a1b2c3d4e5f60718 # Debian 13\n",
            "",
            "machine_images.arm64 is required: r7g.2xlarge is arm64",
        ),
        ("off_site_region: eu-west-1", "off_site_region: eu-central-1", "the stack's own region"),
        ("days: 30 }", "days: 36 }", "object_lock.days 36 outlasts retention_days 35"),
        ("max_size: 9", "max_size: 2", "max_size 2 is less than size 3"),
        ("throughput_mib: 500", "throughput_mib: 1001", "database.data_volume.throughput_mib: expected at most"),
        ("iops: 12000, throughput_mib: 500", "throughput_mib: 1000", "is more than gp3's quarter of 3000 iops"),
        ("internal: false", "internal: true", "internal is true, but allowed_cidrs has public networks: 0.0.0.0/0"),
        ("eu-central-1:111122223333:cert", "us-east-1:111122223333:cert", "traffic.certificate_arn is not in region"),
        ('id: "111122223333"', "id: 111122223333", "account.id: expected a text"),
        ("instance_type: r7g.2xlarge", "instance_typ: r7g.large", "did you mean 'instance_type'?"),
        ("    instance_type: r7g.2xlarge\n", "", "llm-observatory:database.instance_type: is required and not set"),
        ("    node_type:", "    memory_mb: 64\n    node_type:", "cache.memory_mb: a setting of platform 'local'"),
    ],
)
def test_the_error_of_a_wrong_setting_names_it(
    refused: Callable[[str, str], str], old: str, new: str, expected: str
) -> None:
    assert expected in refused(old, new)


def test_ports_are_not_a_setting_of_aws(refused: Callable[[str, str], str]) -> None:
    message = refused("config:\n", "config:\n  llm-observatory:ports: {postgres: 5432}\n")
    assert message == (
        "Pulumi.production.yaml:4: llm-observatory:ports: a setting of platform 'local'; this stack has platform 'aws'"
    )


def test_the_architecture_follows_from_the_instance_type() -> None:
    expected = {
        "r7g.large": "arm64",
        "m7gd.xlarge": "arm64",
        "a1.large": "arm64",
        "m7i.large": "amd64",
        "g5.xlarge": "amd64",
    }
    assert {name: architecture_of(name) for name in expected} == expected
