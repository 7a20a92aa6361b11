"""The summary of a plan: what an operator must see before `up`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from observatory.cli.plan import overview_view
from observatory.engines.embedded import Result, Step, differences
from observatory.operations import Plan, overview
from observatory.workspace import Workspace

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    shutil.copy(ROOT / "Pulumi.production.yaml", tmp_path)
    return Workspace(root=tmp_path, stack="production")


def step(type_: str, name: str, operation: Any = "create", *, protect: bool = False, **inputs: Any) -> Step:
    urn = f"urn:pulumi:production::p::{type_}::{name}"
    return Step(operation=operation, urn=urn, type=type_, changes=tuple(differences({}, inputs)), protect=protect)


def planned(*steps: Step) -> Plan:
    return Plan(engine="embedded", offline=True, result=Result(steps=steps))


INGRESS, BALANCER = "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule", "aws:lb/loadBalancer:LoadBalancer"
BLOCK, INSTANCE = "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock", "aws:ec2/instance:Instance"
CACHE, FLEET = "aws:elasticache/replicationGroup:ReplicationGroup", "aws:autoscaling/group:Group"


@pytest.mark.parametrize(
    "exposed",
    [
        step(INGRESS, "exposed", cidrIpv4="0.0.0.0/0", fromPort=443),
        step(INGRESS, "exposed", "update", cidrIpv6="::/0", fromPort=443),
        step(BALANCER, "exposed", internal=False),
        step(INSTANCE, "exposed", associatePublicIpAddress=True),
        step(BLOCK, "exposed", blockPublicAcls=True, blockPublicPolicy=False),
    ],
)
def test_what_the_internet_reaches_is_public(workspace: Workspace, exposed: Step) -> None:
    private = (
        step(INGRESS, "private", cidrIpv4="10.0.0.0/16", fromPort=443),
        step(BALANCER, "internal", internal=True),
        step(BLOCK, "blocked", blockPublicAcls=True, blockPublicPolicy=True),
    )
    [found] = overview(workspace, planned(exposed, *private)).public
    assert found.startswith("exposed: ")
    assert overview(workspace, planned(replace(exposed, operation="delete"))).public == ()


def test_single_points_of_failure(workspace: Workspace) -> None:
    found = overview(
        workspace,
        planned(
            step(INSTANCE, "database"),
            step(CACHE, "cache", automaticFailoverEnabled=False),
            step(CACHE, "other-cache", automaticFailoverEnabled=True),
            step(FLEET, "blue", minSize=1),
            step(FLEET, "green", minSize=3),
        ),
    ).single
    assert [each.partition(":")[0] for each in found] == ["database", "cache", "blue"]


def test_operations_and_protection(workspace: Workspace) -> None:
    found = overview(
        workspace,
        planned(
            step(INSTANCE, "new"),
            step(INSTANCE, "kept", "same", protect=True),
            step(BALANCER, "moved", "replace"),
            step(BALANCER, "gone", "delete"),
        ),
    )
    assert found.created == {INSTANCE: 1}
    assert (found.replaced, found.deleted, found.protected) == (("moved",), ("gone",), ("kept",))


def test_placeholders_of_the_example_are_named_with_their_lines(workspace: Workspace) -> None:
    found = {each.key: each for each in overview(workspace, planned()).placeholders}
    assert {"account.id", "traffic.domain", "machine_images.arm64", "first_rollout.sha256"} <= found.keys()
    lines = workspace.config_file.read_text().splitlines()
    assert all(each.line and each.value.strip("'\"") in lines[each.line - 1] for each in found.values())


def test_real_values_are_no_placeholders(workspace: Workspace) -> None:
    text = "config:\n  llm-observatory:platform: aws\n  llm-observatory:traffic: { domain: traces.acme.io }\n"
    workspace.config_file.write_text(text)
    assert overview(workspace, planned()).placeholders == ()


def test_a_stack_without_approvers_is_named(workspace: Workspace) -> None:
    [found] = overview(workspace, planned()).contradictions
    assert found.startswith("delivery.approval: a major release can never be deployed, because delivery.trusted_app")
    assert found in overview_view(overview(workspace, planned())).plain
    text = workspace.config_file.read_text()
    key = "MCowBQYDK2VwAyEAtYjBgfPWFiRxmTBYmiORxDCZ7WNuuih5QluqDQ2Il6M="
    approvers = f'trusted_approvers: {{ alice: "{key}" }}\n    approval: [major]'
    workspace.config_file.write_text(text.replace("approval: [major]", approvers))
    assert overview(workspace, planned()).contradictions == ()
