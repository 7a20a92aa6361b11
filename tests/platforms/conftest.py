"""Parts of a stack on AWS, on a server on loopback."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from observatory.platforms.aws.balancer import AlbBalancer
from observatory.platforms.aws.clients import client
from tests.support.aws import REGION, aws_on_loopback

if TYPE_CHECKING:
    from mypy_boto3_elbv2 import ElasticLoadBalancingv2Client
    from mypy_boto3_elbv2.type_defs import (
        ActionTypeDef,
        ForwardActionConfigTypeDef,
        TargetGroupStickinessConfigTypeDef,
        TargetGroupTupleTypeDef,
    )
    from mypy_boto3_s3 import S3Client

_numbers = itertools.count()
STICKY: TargetGroupStickinessConfigTypeDef = {"Enabled": True, "DurationSeconds": 60}


def forward(*targets: tuple[str, int]) -> ActionTypeDef:
    """Return the action with the traffic weights."""
    groups: list[TargetGroupTupleTypeDef] = [{"TargetGroupArn": arn, "Weight": weight} for arn, weight in targets]
    config: ForwardActionConfigTypeDef = {"TargetGroups": groups, "TargetGroupStickinessConfig": STICKY}
    return {"Type": "forward", "Order": 1, "ForwardConfig": config}


@pytest.fixture(scope="session")
def loopback() -> Iterator[dict[str, str]]:
    with aws_on_loopback() as environment:
        yield environment


@pytest.fixture(autouse=True)
def _at_loopback(loopback: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect every client of a test to moto only."""
    for name, value in loopback.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3() -> S3Client:
    return client("s3", REGION)


@pytest.fixture
def bucket(s3: S3Client) -> str:
    """A bucket for the test."""
    name = f"releases-{next(_numbers)}"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    return name


@pytest.fixture
def elb() -> ElasticLoadBalancingv2Client:
    return client("elbv2", REGION)


@pytest.fixture
def balancer(elb: ElasticLoadBalancingv2Client) -> AlbBalancer:
    """A load balancer for the test, whose rule sends all traffic to blue."""
    ec2: Any = boto3.client("ec2", region_name=REGION)
    name = f"balancer-{next(_numbers)}"
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{number}.0/24", AvailabilityZone=f"{REGION}{zone}")
        for number, zone in enumerate("ab")
    ]
    arn = elb.create_load_balancer(Name=name, Subnets=[subnet["Subnet"]["SubnetId"] for subnet in subnets])
    listener = elb.create_listener(
        LoadBalancerArn=arn["LoadBalancers"][0].get("LoadBalancerArn", ""),
        Protocol="HTTP",
        Port=80,
        DefaultActions=[{"Type": "fixed-response", "FixedResponseConfig": {"StatusCode": "404"}}],
    )
    groups = {
        fleet: elb.create_target_group(Name=f"{name}-{fleet}", Protocol="HTTP", Port=8100, VpcId=vpc)["TargetGroups"][
            0
        ].get("TargetGroupArn", "")
        for fleet in ("blue", "green")
    }
    rule = elb.create_rule(
        ListenerArn=listener["Listeners"][0].get("ListenerArn", ""),
        Priority=1,
        Conditions=[{"Field": "path-pattern", "Values": ["/v1/*"]}],
        Actions=[forward((groups["blue"], 100), (groups["green"], 0))],
    )
    return AlbBalancer(client=elb, rule=rule["Rules"][0].get("RuleArn", ""), target_groups=groups)  # type: ignore[arg-type]
