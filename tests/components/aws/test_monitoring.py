"""The resources that a cluster gets of an AWS stack: for its Prometheus Operator, for Grafana, and network policies."""

import ipaddress
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from monitoring import ALERTS, JOBS, RECEIVERS, Scope, alertmanager_config, jobs_of, prometheus_rule
from monitoring.dashboards import DASHBOARDS
from observatory.nodes import Paths
from observatory.nodes.daemons import scrapes
from observatory.nodes.prometheus import prometheus
from observatory.settings import LocalSettings
from tests.support import crds
from tests.support.declared import Declared, Resource

CONFIG_MAP, NETWORK_POLICY = "kubernetes:core/v1:ConfigMap", "kubernetes:networking.k8s.io/v1:NetworkPolicy"
# Alerts whose expressions differ between the platforms, and why.
OF_A_PLATFORM = {
    "StorageExporterDown": "it names the scrape jobs",
    "StorageServiceDown": "the balancer of AWS has no metrics in Prometheus",
    "StorageInstanceDown": "the balancer of AWS has no metrics in Prometheus",
    "StorageDiskCritical": "a large disk that is shared, as a local stack's, has much space at 15 %",
    "StorageDiskWarning": "a large disk that is shared, as a local stack's, has much space at 30 %",
}
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
        filters = {found["name"]: found["values"] for found in discovery["filters"]}
        assert filters.pop("instance-state-name") == ["running"]
        assert discovery["refreshInterval"] == "10s"
        wanted = {name.removeprefix("tag:"): values for name, values in filters.items()}
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


def test_no_inhibition_concerns_alerts_of_others(stack: Declared) -> None:
    """Alertmanager compares a label that both alerts lack as equal: the cluster's own InfoInhibitor has no stack."""
    ((name, specification),) = resources(stack, "AlertmanagerConfig").items()
    own = {"name": "stack", "matchType": "=", "value": name.split("-")[2]}
    for rule in specification["inhibitRules"]:
        assert own in rule["sourceMatch"]
        assert own in rule["targetMatch"]


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


def custom_resources(stack: Declared) -> list[dict[str, Any]]:
    """Return the custom resources of the operator as Kubernetes gets them."""
    return [
        {
            "apiVersion": resource.type.split(":")[1],
            "kind": resource.type.rpartition(":")[2],
            "metadata": resource["metadata"],
            "spec": resource["spec"],
        }
        for resource in stack.resources
        if resource.type.startswith("kubernetes:monitoring.coreos.com/")
    ]


def nested(route: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the routes below a route."""
    for child in route.get("routes", []):
        yield child
        yield from nested(child)


def test_custom_resources_match_the_operators_schemas(stack: Declared) -> None:
    found = custom_resources(stack)
    assert {resource["kind"] for resource in found} == {"PrometheusRule", "AlertmanagerConfig", "ScrapeConfig"}
    assert {f"{each['kind']} {each['metadata']['name']}": crds.problems(each) for each in found} == {
        f"{each['kind']} {each['metadata']['name']}": [] for each in found
    }


def test_nested_routes_match_the_schema_of_the_root(stack: Declared) -> None:
    """The schema admits anything below the root; the operator itself decodes each as a route."""
    (config,) = [each for each in custom_resources(stack) if each["kind"] == "AlertmanagerConfig"]
    routes = list(nested(config["spec"]["route"]))
    assert len(routes) > 5
    for route in routes:
        assert crds.problems({**config, "spec": {**config["spec"], "route": route}}) == []


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ("PrometheusRule", lambda spec: spec["groups"][0].update(intervall="5s"), "'intervall' was unexpected"),
        ("PrometheusRule", lambda spec: spec["groups"][0]["rules"][0].pop("expr"), '"expr" is a required property'),
        ("AlertmanagerConfig", lambda spec: spec["route"].update(groupBy="stack"), 'is not of type "array"'),
        ("AlertmanagerConfig", lambda spec: spec["route"].update(group_by=["stack"]), "'group_by' was unexpected"),
        ("AlertmanagerConfig", lambda spec: spec["receivers"][1].update(slack=[]), "'slack' was unexpected"),
        ("ScrapeConfig", lambda spec: spec.update(scrapeInterval=5), 'is not of type "string"'),
        ("ScrapeConfig", lambda spec: spec.update(scrapeInterval="often"), "does not match"),
        ("ScrapeConfig", lambda spec: spec.update(staticConfig=[]), "'staticConfig' was unexpected"),
    ],
)
def test_a_resource_that_the_operator_would_not_take_as_written_is_found(
    production: Declared, kind: str, change: Any, problem: str
) -> None:
    resource = json.loads(json.dumps(next(each for each in custom_resources(production) if each["kind"] == kind)))
    change(resource["spec"])
    (found,) = crds.problems(resource)
    assert problem.replace("'", "") in found.replace("'", "")


def test_the_rules_are_those_of_a_local_stack(production: Declared) -> None:
    unit = prometheus(LocalSettings(), Paths(), stack="production", instances={}, scrapes=scrapes("local"))
    local = yaml.safe_load(unit.files["/srv/etc/prometheus/rules.yaml"])
    (operator,) = resources(production, "PrometheusRule").values()
    assert [group["name"] for group in operator["groups"]] == [group["name"] for group in local["groups"]]
    here, there = list(normalized(local)), list(normalized(operator))
    differing = {one["alert"] for one, other in zip(here, there, strict=True) if one != other}
    assert differing == OF_A_PLATFORM.keys()
    for one, other in zip(here, there, strict=True):
        assert {**one, "expr": ""} == {**other, "expr": ""}


def normalized(file: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rules without what is another name for the same thing: namespaces, and where pages are."""
    for group in file["groups"]:
        for rule in group["rules"]:
            labels = {name: value for name, value in rule.get("labels", {}).items() if name != "namespace"}
            texts = {name: text for name, text in rule.get("annotations", {}).items() if not name.endswith("_url")}
            yield {**rule, "labels": labels, "annotations": texts}


def test_every_dashboard_is_a_config_map_that_grafanas_sidecar_selects(stack: Declared) -> None:
    found = stack.of(CONFIG_MAP)
    assert len(found) == len(DASHBOARDS)
    identifiers = set()
    for resource in found:
        metadata, ((file, text),) = resource["metadata"], resource["data"].items()
        document = json.loads(text)
        assert metadata["labels"]["grafana_dashboard"] == "1"
        assert metadata["namespace"] == "llm-observatory"
        assert file == f"{document['uid']}.json"
        assert len(text.encode()) < 1_000_000  # Kubernetes' limit is one mebibyte
        identifiers.add(document["uid"])
    (rules,) = resources(stack, "PrometheusRule").values()
    linked = {
        rule["annotations"]["dashboard_url"].rpartition("/")[2]
        for group in rules["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert linked <= identifiers


def test_network_policies_allow_every_target_and_receiver_and_little_else(production: Declared) -> None:
    policies = {resource.name: resource for resource in production.of(NETWORK_POLICY)}
    assert policies.keys() == {"prometheus-egress", "alertmanager-egress"}
    assert {policy["metadata"]["namespace"] for policy in policies.values()} == {"monitoring"}
    assert {tuple(policy["spec"]["policyTypes"]) for policy in policies.values()} == {("Egress",)}
    assert policies["prometheus-egress"]["spec"]["podSelector"]["matchLabels"] == {
        "app.kubernetes.io/name": "prometheus"
    }
    for specification in resources(production, "ScrapeConfig").values():
        for config in specification.get("staticConfigs", []):
            host, _, port = config["targets"][0].rpartition(":")
            assert allows(policies["prometheus-egress"], host, int(port))
        for config in specification.get("ec2SDConfigs", []):
            assert allows(policies["prometheus-egress"], "10.20.0.77", config["port"])
    assert allows(policies["prometheus-egress"], "203.0.113.1", 443)  # EC2's interface
    assert not allows(policies["prometheus-egress"], "10.20.128.10", 5432)
    assert not allows(policies["prometheus-egress"], "169.254.169.254", 80)
    assert allows(policies["alertmanager-egress"], "203.0.113.1", 443)
    assert allows(policies["alertmanager-egress"], "203.0.113.1", 587)  # of the smarthost
    assert not allows(policies["alertmanager-egress"], "10.20.128.10", 9187)
    for policy in policies.values():
        names = {"protocol": "UDP", "port": 53}
        (rule,) = [rule for rule in policy["spec"]["egress"] if names in rule["ports"]]
        assert rule["to"] == [{"namespaceSelector": {}}]


def allows(policy: Resource, host: str, port: int) -> bool:
    """Return whether a policy allows a TCP connection to an address."""
    return any(
        ipaddress.ip_address(host) in ipaddress.ip_network(peer["ipBlock"]["cidr"])
        and {"protocol": "TCP", "port": port} in rule["ports"]
        for rule in policy["spec"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    )


def test_a_cluster_that_does_not_deny_by_default_gets_no_policy(staging: Declared) -> None:
    """The first policy that selects a pod isolates it: Prometheus would scrape nothing else any more."""
    assert [resource for resource in staging.resources if resource.type == NETWORK_POLICY] == []
