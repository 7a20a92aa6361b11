"""The contracts of all components of an AWS stack."""

import importlib
import inspect
import ipaddress
import json
import re
from pathlib import Path
from typing import Any

import pytest

from components.aws.naming import AUTONAMING_SUFFIX
from tests.support.declared import ROOT, SECRET, Declared, Resource, declared

# pulumi_aws warns of its own deprecated modules while it is imported.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:pulumi_aws")]

OWN_TAGS = {"Project", "Stack", "ManagedBy", "Name"}
ANYWHERE = "0.0.0.0/0"
STATEFUL = {"aws:ebs/volume:Volume", "aws:s3/bucket:Bucket", "aws:kms/key:Key", "aws:kms/replicaKey:ReplicaKey"}
NAME_LIMITS = {  # characters, by AWS' references of each service
    "aws:lb/loadBalancer:LoadBalancer": 32,
    "aws:lb/targetGroup:TargetGroup": 32,
    "aws:iam/role:Role": 64,
    "aws:iam/instanceProfile:InstanceProfile": 128,
    "aws:s3/bucket:Bucket": 63,
    "aws:elasticache/replicationGroup:ReplicationGroup": 40,
    "aws:elasticache/subnetGroup:SubnetGroup": 255,
    "aws:ec2/launchTemplate:LaunchTemplate": 128,
    "aws:autoscaling/group:Group": 255,
    "aws:secretsmanager/secret:Secret": 512,
}


def takes_tags(type_: str) -> bool:
    """Ask the SDK's own class."""
    _, place, name = type_.split(":")
    module = importlib.import_module(f"pulumi_aws.{place.partition('/')[0]}")
    made = inspect.signature(getattr(module, name)._internal_init)
    return "tags" in made.parameters


def on_aws(stack: Declared) -> list[Resource]:
    found = [resource for resource in stack.resources if resource.type.startswith("aws:")]
    assert len(found) > 100
    return found


def statements(policy: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(policy)["Statement"]
    assert found
    return found


def test_every_taggable_resource_has_the_stacks_tags(stack: Declared) -> None:
    taggable = [resource for resource in on_aws(stack) if takes_tags(resource.type)]
    assert len(taggable) > 40
    for resource in taggable:
        if resource.type == "aws:s3/bucketObjectv2:BucketObjectv2":
            continue  # the rollout document: delivery writes it anew, and a put takes tags off
        tags = resource["tags"]
        keys = {tag["key"] for tag in tags} if isinstance(tags, list) else set(tags)
        assert keys >= OWN_TAGS, f"{resource.type} {resource.name}"


def test_resources_with_data_are_protected(stack: Declared) -> None:
    stateful = [resource for resource in stack.resources if resource.type in STATEFUL]
    assert {resource.type for resource in stateful} >= STATEFUL - {"aws:kms/replicaKey:ReplicaKey"}
    # A passphrase lives as long as the bucket with the backups.
    passphrases = [resource for resource in stack.resources if "backup-passphrase" in resource.name]
    assert {resource.name for resource in passphrases} >= {"backup-passphrase", "backup-passphrase-2"}
    stateful += passphrases
    assert [resource.name for resource in stateful if not resource.protect] == []


def test_every_resource_has_a_component_above_it(stack: Declared) -> None:
    alone = {
        resource.name for resource in on_aws(stack) if "$" not in resource.parent and ":aws:" not in resource.parent
    }
    assert alone == {"rollout", "prometheus-discovery"}


def test_every_bucket_is_closed_encrypted_versioned_and_requires_tls(stack: Declared) -> None:
    for bucket in stack.of("aws:s3/bucket:Bucket"):
        access = stack.one("aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock", bucket.name)
        blocks = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")
        assert all(access[block] is True for block in blocks)
        encryption = stack.one(
            "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration", bucket.name
        )
        algorithm = encryption["rules"][0]["applyServerSideEncryptionByDefault"]["sseAlgorithm"]
        assert algorithm == ("AES256" if bucket.name == "traffic-logs" else "aws:kms")
        versioning = stack.one("aws:s3/bucketVersioning:BucketVersioning", bucket.name)
        assert versioning["versioningConfiguration"]["status"] == "Enabled"
        (tls, *_) = statements(stack.one("aws:s3/bucketPolicy:BucketPolicy", bucket.name)["policy"])
        assert (tls["Effect"], tls["Principal"], tls["Action"]) == ("Deny", "*", "s3:*")
        assert tls["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        assert len(tls["Resource"]) == 2


def test_backups_are_locked_and_go_to_two_regions(production: Declared, staging: Declared) -> None:
    for name in ("backups", "backups-off-site"):
        lock = production.one("aws:s3/bucketObjectLockConfiguration:BucketObjectLockConfiguration", name)
        assert lock["rule"]["defaultRetention"] == {"mode": "COMPLIANCE", "days": 30}
        assert production.one("aws:s3/bucket:Bucket", name)["objectLockEnabled"] is True
    assert production.one("aws:s3/bucket:Bucket", "backups-off-site")["region"] == "eu-west-1"
    for stack in (production, staging):
        assert len(stack.outputs["backup_stores"]) == 2
        assert {each.name for each in stack.resources if each.name.startswith("backup-passphrase")} == {
            "backup-passphrase",
            "backup-passphrase-2",
        }
        assert not [each for each in stack.resources if "bucketReplication" in each.type]


def test_an_off_site_region_may_be_set_later(production: Declared, tmp_path: Path) -> None:
    """What has data stays as it is: a replacement of the key would be refused, and its data could not be read."""
    text = (ROOT / "Pulumi.production.yaml").read_text()
    file = tmp_path / "Pulumi.production.yaml"
    file.write_text(text.replace("    off_site_region: eu-west-1\n", ""))
    before = declared("production", file)
    assert len(before.outputs["backup_stores"]) == 1
    for resource in before.resources:
        if resource.type in STATEFUL:
            assert production.one(resource.type, resource.name) == resource
    assert before.one("aws:kms/key:Key", "encryption")["multiRegion"] is True


def test_no_other_account_writes_to_a_bucket(stack: Declared) -> None:
    """A service of AWS writes for every account; the balancer's path has the one that it writes for."""
    account = stack.of("aws:lb/listener:Listener")[0]["certificateArn"].split(":")[4]
    allowed = [
        statement
        for bucket in stack.of("aws:s3/bucketPolicy:BucketPolicy")
        for statement in statements(bucket["policy"])
        if statement["Effect"] == "Allow"
    ]
    assert [statement["Resource"].endswith(f"/*/AWSLogs/{account}/*") for statement in allowed] == [True]


def test_only_the_balancer_of_production_is_open_to_the_world(production: Declared, staging: Declared) -> None:
    def open_to_all(stack: Declared) -> set[tuple[str, int]]:
        rules = stack.of("aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule")
        public = [rule for rule in rules if "cidrIpv4" in rule.inputs and not _private(rule["cidrIpv4"])]
        return {(rule["securityGroupId"], rule["fromPort"]) for rule in public}

    assert open_to_all(production) == {("balancer-id", 443)}
    assert open_to_all(staging) == set()
    for stack in (production, staging):
        for group in stack.of("aws:ec2/securityGroup:SecurityGroup"):
            assert "ingress" not in group.inputs
            assert "egress" not in group.inputs


def _private(cidr: str) -> bool:
    return ipaddress.IPv4Network(cidr).is_private


def test_the_database_is_reached_by_fleets_through_the_pooler_and_by_operations(stack: Declared) -> None:
    rules = stack.of("aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule")
    ends = [rule for rule in rules if rule["securityGroupId"] == "database-id"]
    groups = {(rule["referencedSecurityGroupId"], rule["fromPort"]) for rule in ends if "cidrIpv4" not in rule.inputs}
    assert groups == {("fleets-id", 6432)}
    assert {rule["cidrIpv4"] for rule in ends if "cidrIpv4" in rule.inputs} in ({"10.0.0.0/16"}, {"10.1.0.0/16"})


def test_staging_is_internal(staging: Declared, production: Declared) -> None:
    assert all(balancer["internal"] is True for balancer in staging.of("aws:lb/loadBalancer:LoadBalancer"))
    internal = {balancer.name: balancer["internal"] for balancer in production.of("aws:lb/loadBalancer:LoadBalancer")}
    assert internal == {"service": False, "preview": True}


def test_no_machine_has_a_public_address_and_metadata_require_a_token(stack: Declared) -> None:
    machine = stack.one("aws:ec2/instance:Instance", "database")
    assert machine["associatePublicIpAddress"] is False
    templates = stack.of("aws:ec2/launchTemplate:LaunchTemplate")
    for template in templates:
        assert template["networkInterfaces"][0]["associatePublicIpAddress"] == "false"
    for resource in (machine, *templates):
        assert resource["metadataOptions"] == {
            "httpEndpoint": "enabled",
            "httpTokens": "required",
            "httpPutResponseHopLimit": 1,
        }
        assert "keyName" not in resource.inputs
    assert all(subnet["mapPublicIpOnLaunch"] is False for subnet in stack.of("aws:ec2/subnet:Subnet"))


def test_every_volume_is_encrypted(stack: Declared) -> None:
    for volume in stack.of("aws:ebs/volume:Volume"):
        assert volume["encrypted"] is True
        assert "Key/encryption" in volume["kmsKeyId"]
        assert volume["finalSnapshot"] is True
    assert stack.one("aws:ec2/instance:Instance", "database")["rootBlockDevice"]["encrypted"] is True
    for template in stack.of("aws:ec2/launchTemplate:LaunchTemplate"):
        assert template["blockDeviceMappings"][0]["ebs"]["encrypted"] == "true"
    cache = stack.one("aws:elasticache/replicationGroup:ReplicationGroup", "cache")
    assert cache["transitEncryptionEnabled"] is True
    assert cache["atRestEncryptionEnabled"] is True


def test_generated_names_are_within_aws_limits(stack: Declared) -> None:
    for type_, limit in NAME_LIMITS.items():
        for resource in stack.of(type_):
            assert len(resource.name) + AUTONAMING_SUFFIX <= limit, f"{type_} {resource.name}"
    assert len(stack.one("aws:kms/alias:Alias", "encryption")["name"]) <= 256


def test_no_permission_covers_all_resources(stack: Declared) -> None:
    policies = [resource for resource in stack.resources if resource.type == "aws:iam/rolePolicy:RolePolicy"]
    assert {policy.name for policy in policies} >= {"database", "blue", "green"}
    for policy in policies:
        for statement in statements(policy["policy"]):
            described = all(action.startswith("ec2:Describe") for action in statement["Action"])
            assert described or "*" not in statement["Resource"], policy.name
            assert not [action for action in statement["Action"] if action in ("*", "s3:*", "kms:*")]


def test_a_machine_reads_its_own_secret_and_no_other(stack: Declared) -> None:
    for name in ("database", "blue", "green"):
        policy = stack.one("aws:iam/rolePolicy:RolePolicy", name)["policy"]
        readable = [s["Resource"] for s in statements(policy) if "secretsmanager:GetSecretValue" in s["Action"]]
        assert readable == [[f"arn:aws:made:eu-central-1:111122223333:Secret/{name}-machine"]]


def test_secrets_are_only_in_secret_properties(stack: Declared) -> None:
    secret_types = {
        "aws:secretsmanager/secretVersion:SecretVersion",
        "aws:elasticache/replicationGroup:ReplicationGroup",
    }
    for resource in on_aws(stack):
        if resource.type not in secret_types:
            assert SECRET not in json.dumps(resource.inputs), f"{resource.type} {resource.name}"


def test_outputs_have_the_names_of_every_stack(production: Declared, staging: Declared) -> None:
    local = {
        *("service_url", "preview_url", "database_url", "admin_database_url", "prometheus_url", "alertmanager_url"),
        *("database_urls", "fleets", "active_fleet", "schema_version", "backup_stores", "ca_file", "api_key"),
    }
    for stack in (production, staging):
        assert set(stack.outputs) == {*local, "delivery"}
    assert production.outputs["service_url"] == "https://storage.observatory.example.com"
    assert production.outputs["admin_database_url"].startswith("arn:aws:secretsmanager:")
    assert re.fullmatch(
        r"postgresql://app_a:s3cr3t-of-app_a@10\.20\.128\.10:6432/observatory\?sslmode=verify-full&sslrootcert=.+",
        production.outputs["database_url"],
    )
