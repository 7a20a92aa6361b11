"""The custom resources that the cluster's Prometheus Operator gets of an AWS stack."""

import json
from typing import Any

import pytest

from monitoring import ALERTS, JOBS, RECEIVERS, Scope, alertmanager_config, jobs_of, prometheus_rule
from tests.support.declared import Declared

SCOPE = Scope(stack="s1", runbooks="http://runbooks", platform="aws")


def resources(stack: Declared, kind: str) -> dict[str, Any]:
    """Return the specifications of a kind by the resources' names."""
    version = "v1" if kind == "PrometheusRule" else "v1alpha1"
    found = stack.of(f"kubernetes:monitoring.coreos.com/{version}:{kind}")
    return {resource["metadata"]["name"]: resource["spec"] for resource in found}


def test_every_alert_of_the_registry_is_a_rule_that_its_route_matches(production: Declared) -> None:
    (specification,) = resources(production, "PrometheusRule").values()
    rules = [rule for group in specification["groups"] for rule in group["rules"] if "alert" in rule]
    assert {rule["alert"] for rule in rules} == {alert.name for alert in ALERTS}
    assert {rule["labels"]["namespace"] for rule in rules} == {"llm-observatory"}
    assert {rule["labels"]["stack"] for rule in rules} == {"production"}


def test_no_rule_queries_metrics_that_an_aws_stack_lacks(production: Declared) -> None:
    text = json.dumps(resources(production, "PrometheusRule"))
    absent = [job.name for job in JOBS if job not in jobs_of("aws")]
    assert absent
    assert not [name for name in absent if f'job=\\"{name}\\"' in text]
    assert "haproxy" not in text
    assert "storage_fleet_weight" not in text


def test_every_job_is_scraped_at_its_targets(production: Declared) -> None:
    scraped = resources(production, "ScrapeConfig")
    assert {specification["jobName"] for specification in scraped.values()} == {job.name for job in jobs_of("aws")}
    postgres = scraped["llm-observatory-production-postgres"]
    assert postgres["staticConfigs"] == [{"targets": ["10.20.128.10:9187"]}]
    assert {"targetLabel": "stack", "replacement": "production"} in postgres["relabelings"]


def test_a_fleet_is_found_by_the_tags_that_its_machines_have(production: Declared) -> None:
    for fleet in ("blue", "green"):
        scraped = resources(production, "ScrapeConfig")[f"llm-observatory-production-storage-{fleet}"]
        (discovery,) = scraped["ec2SDConfigs"]
        wanted = {found["name"].removeprefix("tag:"): found["values"] for found in discovery["filters"]}
        template = production.one("aws:ec2/launchTemplate:LaunchTemplate", fleet)
        (tags,) = [one["tags"] for one in template["tagSpecifications"] if one["resourceType"] == "instance"]
        assert {name: [tags[name]] for name in wanted} == wanted
        assert {"targetLabel": "fleet", "replacement": fleet} in scraped["relabelings"]


def test_the_firewall_allows_every_target(production: Declared) -> None:
    rules = production.of("aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule")
    opened = {(rule["securityGroupId"], rule["fromPort"]) for rule in rules if "cidrIpv4" in rule.inputs}
    for specification in resources(production, "ScrapeConfig").values():
        for config in specification.get("staticConfigs", []):
            assert ("database-id", int(config["targets"][0].rpartition(":")[2])) in opened
        for config in specification.get("ec2SDConfigs", []):
            assert ("fleets-id", config["port"]) in opened


def test_routes_match_this_stacks_alerts_and_reach_every_receiver(stack: Declared) -> None:
    ((name, specification),) = resources(stack, "AlertmanagerConfig").items()
    own = {"name": "stack", "matchType": "=", "value": name.split("-")[2]}
    assert own in specification["route"]["matchers"]
    reached = {route["receiver"] for route in specification["route"]["routes"]}
    assert reached >= set(RECEIVERS)
    assert {receiver["name"] for receiver in specification["receivers"]} >= reached
    muted = {name for route in specification["route"]["routes"] for name in route.get("muteTimeIntervals", [])}
    assert muted == {interval["name"] for interval in specification["muteTimeIntervals"]}
    assert all(rule["equal"] for rule in specification["inhibitRules"])


def test_receivers_name_their_secrets_and_hold_none(production: Declared) -> None:
    (specification,) = resources(production, "AlertmanagerConfig").values()
    named = {receiver["name"]: receiver for receiver in specification["receivers"]}
    routing = named["pagerduty"]["pagerdutyConfigs"][0]["routingKey"]
    assert routing == {"name": "alert-receivers", "key": "pagerduty-routing-key"}
    assert named["slack"]["slackConfigs"][0]["apiURL"]["key"] == "slack-webhook-url"
    assert named["email"]["emailConfigs"][0]["authPassword"]["key"] == "smtp-password"
    assert not named["watchdog"]["webhookConfigs"][0]["sendResolved"]


def test_a_receiver_that_is_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="have no configuration"):
        alertmanager_config(SCOPE, {"slack": {}})


def test_resources_have_the_labels_by_which_the_operator_selects(stack: Declared) -> None:
    custom = [resource for resource in stack.resources if resource.type.startswith("kubernetes:monitoring")]
    assert len(custom) > 8
    for resource in custom:
        assert resource["metadata"]["labels"]["release"] == "kube-prometheus-stack"
        assert resource["metadata"]["namespace"] == "llm-observatory"


def test_every_alert_keeps_its_labels_in_the_operators_rule() -> None:
    rules = prometheus_rule(SCOPE, namespace="ns")["groups"]
    alerts = {rule["alert"]: rule["labels"] for group in rules for rule in group["rules"] if "alert" in rule}
    assert alerts == {alert.name: {**alert.labels(SCOPE), "namespace": "ns"} for alert in ALERTS}
