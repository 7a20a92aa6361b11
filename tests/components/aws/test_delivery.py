"""The rollout document's weights reach the balancer, and both fleets exist."""

import re

import pytest

from observatory.documents.rollout import RolloutDocument
from tests.support.declared import WEIGHTS, Declared, rollout

pytestmark = pytest.mark.slow


def test_the_documents_weights_arrive_at_the_listener(stack: Declared) -> None:
    rule = stack.one("aws:lb/listenerRule:ListenerRule", "service")
    groups = rule["actions"][0]["forward"]["targetGroups"]
    named = {group["arn"].rpartition("/")[2]: group["weight"] for group in groups}
    assert named == WEIGHTS


def test_an_old_checkouts_weights_never_reach_an_existing_listener(stack: Declared) -> None:
    rule = stack.one("aws:lb/listenerRule:ListenerRule", "service")
    groups = rule["actions"][0]["forward"]["targetGroups"]
    ignored = {f"actions[0].forward.targetGroups[{index}].weight" for index in range(len(groups))}
    assert set(rule.ignore_changes) == ignored


def test_the_public_listener_passes_the_api_and_the_two_probes_only(stack: Declared) -> None:
    (condition,) = stack.one("aws:lb/listenerRule:ListenerRule", "service")["conditions"]
    assert condition["pathPattern"]["values"] == ["/v1/*", "/health/live", "/health/ready", "/openapi.json"]
    otherwise = stack.one("aws:lb/listener:Listener", "service")["defaultActions"][0]
    assert otherwise["fixedResponse"]["statusCode"] == "404"


def test_listeners_accept_tls_only(stack: Declared) -> None:
    for listener in stack.of("aws:lb/listener:Listener"):
        assert (listener["port"], listener["protocol"]) == (443, "HTTPS")
        assert "TLS13" in listener["sslPolicy"]
    assert all(balancer["accessLogs"]["enabled"] for balancer in stack.of("aws:lb/loadBalancer:LoadBalancer"))


def test_preview_traffic_reaches_the_fleet_in_the_header(stack: Declared) -> None:
    for fleet in ("blue", "green"):
        rule = stack.one("aws:lb/listenerRule:ListenerRule", f"preview-{fleet}")
        assert rule["conditions"][0]["httpHeader"] == {"httpHeaderName": "X-Observatory-Fleet", "values": [fleet]}
        assert rule["actions"][0]["targetGroupArn"].endswith(f"/{fleet}-preview")


def test_both_fleets_are_in_every_zone_and_behind_both_balancers(production: Declared) -> None:
    for fleet in ("blue", "green"):
        group = production.one("aws:autoscaling/group:Group", fleet)
        assert (group["minSize"], group["maxSize"]) == (3, 9)
        assert len(set(group["vpcZoneIdentifiers"])) == 3
        assert {arn.rpartition("/")[2] for arn in group["targetGroupArns"]} == {fleet, f"{fleet}-preview"}
        assert "desiredCapacity" not in group.inputs  # scaling's


def test_no_target_group_belongs_to_two_balancers(stack: Declared) -> None:
    public = stack.one("aws:lb/listenerRule:ListenerRule", "service")["actions"][0]["forward"]["targetGroups"]
    preview = [stack.one("aws:lb/listenerRule:ListenerRule", f"preview-{fleet}") for fleet in ("blue", "green")]
    used = {group["arn"] for group in public}, {rule["actions"][0]["targetGroupArn"] for rule in preview}
    assert not used[0] & used[1]


def test_the_rollout_document_is_written_once_and_by_no_later_up(stack: Declared) -> None:
    document = stack.one("aws:s3/bucketObjectv2:BucketObjectv2", "rollout")
    assert RolloutDocument.model_validate_json(document["content"]) == rollout()
    assert "content" in document.ignore_changes
    assert document.protect


def test_outputs_name_the_parts_of_the_fleets(stack: Declared) -> None:
    delivery = stack.outputs["delivery"]
    assert delivery["rule"].endswith("ListenerRule/service")
    for fleet in ("blue", "green"):
        parts = delivery["fleets"][fleet]
        group = stack.one("aws:autoscaling/group:Group", fleet)
        assert parts["group"].startswith(fleet)
        assert group["targetGroupArns"] == [parts["target_group"], parts["preview_group"]]
        assert group["minSize"] == parts["size"]


def test_deliveries_have_a_key_on_every_stack_for_few_requests_where_customers_are(
    staging: Declared, production: Declared
) -> None:
    own = production.one("pulumi-python:dynamic/local:ApiKey", "delivery")
    assert own["rate_limit_rpm"] == 600
    assert staging.one("pulumi-python:dynamic/local:ApiKey", "operator")["rate_limit_rpm"] == 60_000


def test_the_document_is_no_part_of_the_launch_templates(stack: Declared) -> None:
    """A rollout is no change of a template, so no `up` after it replaces a machine."""
    for template in stack.of("aws:ec2/launchTemplate:LaunchTemplate"):
        text = str(template.inputs)
        assert all(word not in text for word in ("v1.2.3", "v1.3.0", "a" * 64, "b" * 64))


def test_a_machine_that_replaces_another_takes_its_address_and_volumes(stack: Declared) -> None:
    machine = stack.one("aws:ec2/instance:Instance", "database")
    assert machine.delete_before_replace
    assert machine["userDataReplaceOnChange"] is True
    assert machine["privateIp"].endswith(".128.10")
    reserved = stack.one("aws:ec2/subnetCidrReservation:SubnetCidrReservation", "database-address")
    assert reserved["cidrBlock"] == f"{machine['privateIp']}/32"
    assert (reserved["reservationType"], reserved["subnetId"]) == ("explicit", machine["subnetId"])
    attached = stack.of("aws:ec2/volumeAttachment:VolumeAttachment")
    assert {volume["volumeId"] for volume in attached} == {"vol-0aaaaaaaaaaaaaaa1", "vol-0bbbbbbbbbbbbbbb2"}


def test_nothing_is_placed_beside_the_database_before_its_address_is_reserved(stack: Declared) -> None:
    first = stack.one("aws:ec2/instance:Instance", "database")["subnetId"]
    kinds = {"Instance", "Group", "LoadBalancer", "SubnetGroup"}
    inside = [each for each in stack.resources if each.type.rpartition(":")[2] in kinds and first in str(each.inputs)]
    assert {each.type.rpartition(":")[2] for each in inside} == kinds
    assert [each.name for each in inside if "database-address" not in each.dependencies] == []


def test_no_machine_starts_before_it_can_install_its_packages(stack: Declared) -> None:
    """A fleet's machines wait for the schema, and so for the database's."""
    kinds = ("Route", "RouteTableAssociation", "SecurityGroupEgressRule")
    ways = [each.name for each in stack.resources if each.type.rpartition(":")[2] in kinds]
    needed = {
        name for name in ways if re.fullmatch(r"private-[^-]+-[^-]+-\w+(-internet)?|(fleets|database)-0\..*", name)
    }
    assert {name.partition("-")[0] for name in needed} == {"private", "fleets", "database"}
    assert needed <= set(stack.one("aws:ec2/instance:Instance", "database").dependencies)
    assert all("schema" in stack.one("aws:autoscaling/group:Group", fleet).dependencies for fleet in ("blue", "green"))
