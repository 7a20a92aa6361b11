"""Balancer and hosts on AWS, against moto's server and, for what it lacks, stubs.

Stubber checks every call and every answer against the model of the service that botocore ships.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from botocore.stub import Stubber

from observatory.database.verification_rows import MarkedRows
from observatory.delivery.environment import BalancerError, HostsError
from observatory.documents.rollout import RolloutDocument
from observatory.platforms.aws.balancer import AlbBalancer
from observatory.platforms.aws.clients import client
from observatory.platforms.aws.hosts import AwsHosts, Fleet
from observatory.platforms.preview import Preview
from tests.delivery.environment import OLD, MemoryStore
from tests.platforms.conftest import STICKY, forward
from tests.support.aws import REGION

if TYPE_CHECKING:
    from mypy_boto3_elbv2 import ElasticLoadBalancingv2Client


def test_weights_are_set_and_read(balancer: AlbBalancer) -> None:
    assert balancer.weights() == {"blue": 100, "green": 0}
    balancer.set_weights({"blue": 95, "green": 5})
    assert balancer.weights() == {"blue": 95, "green": 5}


def test_a_change_of_weights_keeps_the_rest_of_the_rule(
    balancer: AlbBalancer, elb: ElasticLoadBalancingv2Client
) -> None:
    (before,) = elb.describe_rules(RuleArns=[balancer.rule])["Rules"]
    balancer.set_weights({"blue": 0, "green": 100})
    (after,) = elb.describe_rules(RuleArns=[balancer.rule])["Rules"]
    assert after.get("Conditions") == before.get("Conditions")
    assert after.get("Priority") == before.get("Priority")
    assert after.get("Actions", [])[0].get("ForwardConfig", {}).get("TargetGroupStickinessConfig") == STICKY


def test_weights_set_by_hand_are_read_as_percentages(balancer: AlbBalancer, elb: ElasticLoadBalancingv2Client) -> None:
    _forward_to(elb, balancer, {"blue": 1, "green": 3})
    assert balancer.weights() == {"blue": 25, "green": 75}


def test_a_rule_without_traffic_is_reported(balancer: AlbBalancer, elb: ElasticLoadBalancingv2Client) -> None:
    _forward_to(elb, balancer, {"blue": 0, "green": 0})
    with pytest.raises(BalancerError, match="no traffic to any fleet"):
        balancer.weights()
    balancer.set_weights({"blue": 100, "green": 0})
    assert balancer.weights() == {"blue": 100, "green": 0}


def test_traffic_to_a_foreign_target_group_is_reported_and_can_be_corrected(
    balancer: AlbBalancer, elb: ElasticLoadBalancingv2Client
) -> None:
    known = elb.describe_target_groups(TargetGroupArns=[*balancer.target_groups.values()])["TargetGroups"][0]
    vpc = known.get("VpcId", "")
    foreign = elb.create_target_group(Name="foreign", Protocol="HTTP", Port=1, VpcId=vpc)["TargetGroups"][0]
    arn = foreign.get("TargetGroupArn", "")
    _forward_to(elb, balancer, {"blue": 50, "green": 0}, (arn, 50))
    with pytest.raises(BalancerError, match=f"forwards to {arn}"):
        balancer.weights()
    balancer.set_weights({"blue": 100, "green": 0})
    assert balancer.weights() == {"blue": 100, "green": 0}


def test_a_missing_rule_is_reported(balancer: AlbBalancer, elb: ElasticLoadBalancingv2Client) -> None:
    elb.delete_rule(RuleArn=balancer.rule)
    with pytest.raises(BalancerError, match="RuleNotFound"):
        balancer.set_weights({"blue": 100, "green": 0})


def _forward_to(
    elb: ElasticLoadBalancingv2Client, balancer: AlbBalancer, weights: dict[str, int], *others: tuple[str, int]
) -> None:
    """Change the rule as an operator at the console would."""
    targets = [(arn, weights[fleet]) for fleet, arn in balancer.target_groups.items()]
    elb.modify_rule(RuleArn=balancer.rule, Actions=[forward(*targets, *others)])


@dataclass
class Waiting:
    """A clock that only waiting moves."""

    time: float = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


GREEN = Fleet(group="green-1", target_group="arn:green", preview_group="arn:green-preview", size=2)


def no_rows() -> AbstractContextManager[MarkedRows]:
    raise AssertionError("no fleet is exercised")


class Services:
    """Auto Scaling and the load balancers with stubbed answers, in order."""

    def __init__(self) -> None:
        self.scaling, self.balancing = client("autoscaling", REGION), client("elbv2", REGION)
        self.clock = Waiting()
        self.scaling_says, self.balancing_says = Stubber(self.scaling), Stubber(self.balancing)

    @property
    def hosts(self) -> AwsHosts:
        first = RolloutDocument.first(version="v0.1.0", sha256=OLD, active_fleet="blue")
        return AwsHosts(
            rollout=MemoryStore(first),
            scaling=self.scaling,
            balancing=self.balancing,
            fleets={"green": GREEN},
            preview=Preview(url="http://127.0.0.1:9", marked_rows=no_rows),
            clock=self.clock,
        )

    def under_way(self, *statuses: str) -> None:
        """Stub the list of the group's refreshes."""
        found = [{"InstanceRefreshId": f"old-{number}", "Status": each} for number, each in enumerate(statuses)]
        self.scaling_says.add_response(
            "describe_instance_refreshes", {"InstanceRefreshes": found}, {"AutoScalingGroupName": "green-1"}
        )

    def started(self) -> None:
        expected = {
            "AutoScalingGroupName": "green-1",
            "Strategy": "Rolling",
            "Preferences": {
                "MinHealthyPercentage": 100,
                "MaxHealthyPercentage": 200,
                "InstanceWarmup": 0,
                "SkipMatching": False,
                "AutoRollback": False,
            },
        }
        self.scaling_says.add_response("start_instance_refresh", {"InstanceRefreshId": "new"}, expected)

    def refreshed(self, status: str, reason: str = "") -> None:
        answer = {"InstanceRefreshId": "new", "Status": status, **({"StatusReason": reason} if reason else {})}
        self.scaling_says.add_response(
            "describe_instance_refreshes",
            {"InstanceRefreshes": [answer]},
            {"AutoScalingGroupName": "green-1", "InstanceRefreshIds": ["new"]},
        )

    def targets(self, group: str, *states: str) -> None:
        described = [
            {
                "Target": {"Id": f"i-{number}"},
                "TargetHealth": {"State": state, **({} if state == "healthy" else {"Description": "as it is"})},
            }
            for number, state in enumerate(states)
        ]
        self.balancing_says.add_response(
            "describe_target_health", {"TargetHealthDescriptions": described}, {"TargetGroupArn": group}
        )


@pytest.fixture
def aws() -> Iterator[Services]:
    """Services whose stubbed answers must all be used."""
    services = Services()
    with services.scaling_says, services.balancing_says:
        yield services
        services.scaling_says.assert_no_pending_responses()
        services.balancing_says.assert_no_pending_responses()


def test_installing_replaces_the_machines_and_waits_for_both_balancers(aws: Services) -> None:
    aws.under_way("Successful", "Failed")
    aws.started()
    for status in ("Pending", "InProgress", "Successful"):
        aws.refreshed(status)
    aws.targets("arn:green", "initial", "initial", "draining")
    aws.targets("arn:green", "healthy", "healthy")
    aws.targets("arn:green-preview", "healthy", "healthy")
    aws.hosts.install("green")
    assert aws.clock.time == 3 * 5


def test_a_replacement_under_way_is_cancelled_first(aws: Services) -> None:
    aws.under_way("InProgress")
    aws.scaling_says.add_response(
        "cancel_instance_refresh", {"InstanceRefreshId": "old-0"}, {"AutoScalingGroupName": "green-1"}
    )
    aws.under_way("Cancelling")
    aws.under_way("Cancelled")
    aws.started()
    aws.refreshed("Successful")
    aws.targets("arn:green", "healthy", "healthy")
    aws.targets("arn:green-preview", "healthy", "healthy")
    aws.hosts.install("green")


def test_a_replacement_that_ends_before_it_is_cancelled_is_no_error(aws: Services) -> None:
    aws.under_way("InProgress")
    aws.scaling_says.add_client_error("cancel_instance_refresh", "ActiveInstanceRefreshNotFound")
    aws.under_way("Successful")
    aws.started()
    aws.refreshed("Successful")
    aws.targets("arn:green", "healthy", "healthy")
    aws.targets("arn:green-preview", "healthy", "healthy")
    aws.hosts.install("green")


@pytest.mark.parametrize("status", ["Failed", "Cancelled", "RollbackSuccessful"])
def test_a_failed_replacement_is_reported_with_its_reason(aws: Services, status: str) -> None:
    aws.under_way()
    aws.started()
    aws.refreshed(status, "no capacity of t3.small in eu-central-1a")
    with pytest.raises(HostsError, match=f"green-1: instance refresh new is {status}: no capacity"):
        aws.hosts.install("green")


def test_the_wait_for_machines_that_never_become_ready_times_out(aws: Services) -> None:
    aws.under_way()
    aws.started()
    aws.refreshed("Successful")
    for _ in range(30 * 60 // 5 + 1):
        aws.targets("arn:green", "healthy", "unhealthy")
    with pytest.raises(
        HostsError, match=r"after 30 minutes: .*1 of 2 instances are ready; i-1 is unhealthy \(as it is\)"
    ):
        aws.hosts.install("green")


def test_an_error_of_aws_is_reported_with_its_place(aws: Services) -> None:
    aws.scaling_says.add_client_error("describe_instance_refreshes", "AccessDenied", "not you")
    with pytest.raises(HostsError, match=r"green-1: .*AccessDenied"):
        aws.hosts.install("green")


@pytest.mark.parametrize(
    ("states", "healthy"),
    [
        (("healthy", "healthy"), True),
        (("healthy", "healthy", "initial"), True),  # scaling adds one
        (("healthy", "healthy", "unhealthy"), True),
        (("healthy", "unhealthy"), False),
        (("healthy", "draining"), False),
        (("healthy",), False),
        ((), False),
    ],
)
def test_a_fleet_is_healthy_with_its_minimum_size_of_ready_instances(
    aws: Services, states: tuple[str, ...], healthy: bool
) -> None:
    aws.targets("arn:green", *states)
    assert aws.hosts.healthy("green") is healthy
