"""The same rules, routes and scrape jobs as specifications of the Prometheus Operator's custom resources.

PrometheusRule is `monitoring.coreos.com/v1`, AlertmanagerConfig and ScrapeConfig are `v1alpha1`. The operator adds a
matcher of the resource's namespace to every route of an AlertmanagerConfig (its default strategy `OnNamespace`), so
every rule here carries that namespace as a label: a route can then never take another team's alerts, nor lose ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from monitoring.alertmanager import NOBODY, RECEIVERS, ROLLBACK, TIME_INTERVALS, Receiver, inhibitions, named, routes
from monitoring.jobs import Job
from monitoring.model import Scope
from monitoring.rules import rule_file

INTERVAL, TIMEOUT = "5s", "4s"  # as on every stack: detection is most of the time between a fault and its page
_MATCHER = re.compile(r'(?P<name>[a-zA-Z_]\w*)(?P<type>=~|!~|!=|=)"(?P<value>[^"]*)"')


def prometheus_rule(scope: Scope, *, namespace: str) -> dict[str, Any]:
    """Return the specification of a PrometheusRule: the stack's rule file, alerts with the namespace as a label."""
    specification: dict[str, Any] = yaml.safe_load(rule_file(scope))
    for group in specification["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["labels"]["namespace"] = namespace
    return specification


def alertmanager_config(scope: Scope, receivers: Mapping[Receiver, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the specification of an AlertmanagerConfig that takes the stack's alerts alone.

    Args:
        scope: the stack.
        receivers: what each receiver does, in the operator's own keys, such as `{"pagerdutyConfigs": [...]}`.

    Raises:
        ValueError: a receiver is missing, so that its alerts would reach nobody.
    """
    if missing := set(RECEIVERS) - receivers.keys():
        raise ValueError(f"no configuration for receivers {sorted(missing)}: their alerts would reach nobody")
    route = _route({**routes(rollback=ROLLBACK in receivers), "matchers": [f'stack="{scope.stack}"']})
    return {
        "route": route,
        "inhibitRules": [_inhibition(rule) for rule in inhibitions()],
        "muteTimeIntervals": [
            {"name": interval["name"], "timeIntervals": interval["time_intervals"]} for interval in TIME_INTERVALS
        ],
        "receivers": [{"name": NOBODY}, *named(receivers)],
    }


def scrape_config(
    job: Job,
    *,
    targets: Iterable[str] = (),
    discovery: Iterable[Mapping[str, Any]] = (),
    labels: Mapping[str, str],
) -> dict[str, Any]:
    """Return the specification of a ScrapeConfig.

    Args:
        job: what is scraped.
        targets: addresses that stay, as `host:port`.
        discovery: EC2 service discovery (`ec2SDConfigs`); an instance is then named by its id.
        labels: that every series gets.
    """
    relabelings: list[dict[str, Any]] = [{"targetLabel": name, "replacement": value} for name, value in labels.items()]
    if discovered := [dict(one) for one in discovery]:
        relabelings.append({"sourceLabels": ["__meta_ec2_instance_id"], "targetLabel": "instance"})
    keep = [{"sourceLabels": ["__name__"], "regex": job.keep, "action": "keep"}] if job.keep else []
    return {
        "jobName": job.name,
        "metricsPath": job.path,
        "scrapeInterval": INTERVAL,
        "scrapeTimeout": TIMEOUT,
        **({"params": {name: list(values) for name, values in job.params.items()}} if job.params else {}),
        **({"staticConfigs": [{"targets": known}]} if (known := list(targets)) else {}),
        **({"ec2SDConfigs": discovered} if discovered else {}),
        "relabelings": relabelings,
        **({"metricRelabelings": keep} if keep else {}),
    }


def _route(route: Mapping[str, Any]) -> dict[str, Any]:
    """Return a route, and those below it, in the operator's spelling."""
    spelled: dict[str, Any] = {_camel(key): value for key, value in route.items()}
    if "matchers" in spelled:
        spelled["matchers"] = [_matcher(text) for text in spelled["matchers"]]
    if "routes" in spelled:
        spelled["routes"] = [_route(below) for below in spelled["routes"]]
    return spelled


def _inhibition(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "sourceMatch": [_matcher(text) for text in rule["source_matchers"]],
        "targetMatch": [_matcher(text) for text in rule["target_matchers"]],
        "equal": list(rule["equal"]),
    }


def _matcher(text: str) -> dict[str, str]:
    found = _MATCHER.fullmatch(text)
    if found is None:
        raise ValueError(f"matcher {text!r}: expected name, operator and a quoted value")
    return {"name": found["name"], "matchType": found["type"], "value": found["value"]}


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)
