"""The rules, routes and scrape jobs as specifications of the Prometheus Operator's custom resources.

PrometheusRule is `monitoring.coreos.com/v1`, AlertmanagerConfig and ScrapeConfig are `v1alpha1`. By default
(`OnNamespace`) the operator adds a matcher of the resource's namespace to every route of an AlertmanagerConfig.
Every rule here therefore has that namespace as a label, so the routes match all alerts of the stack and no others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from monitoring.alertmanager import (
    NO_RECEIVER,
    RECEIVERS,
    ROLLBACK,
    TIME_INTERVALS,
    Receiver,
    inhibitions,
    named,
    routes,
)
from monitoring.model import Scope
from monitoring.rules import rule_file
from monitoring.scrape_jobs import Job

INTERVAL, TIMEOUT = "5s", "4s"  # as on `local`: detection takes most of the time between a fault and its page
_MATCHER = re.compile(r'(?P<name>[a-zA-Z_]\w*)(?P<type>=~|!~|!=|=)"(?P<value>[^"]*)"')


def prometheus_rule(scope: Scope, *, namespace: str) -> dict[str, Any]:
    """Return the specification of a PrometheusRule: the stack's rules, with the namespace as a label of each alert."""
    specification: dict[str, Any] = yaml.safe_load(rule_file(scope))
    for group in specification["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["labels"]["namespace"] = namespace
    return specification


def alertmanager_config(scope: Scope, receivers: Mapping[Receiver, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the specification of an AlertmanagerConfig that routes only the alerts of the stack.

    Args:
        scope: the stack.
        receivers: configuration of each receiver in the operator's keys, e.g. `{"pagerdutyConfigs": [...]}`.

    Raises:
        ValueError: a receiver has no configuration, so its alerts would not be delivered.
    """
    if missing := set(RECEIVERS) - receivers.keys():
        raise ValueError(
            f"receivers {sorted(missing)} have no configuration, so their alerts would be lost: configure them"
        )
    route = _route({**routes(rollback=ROLLBACK in receivers), "matchers": [f'stack="{scope.stack}"']})
    return {
        "route": route,
        "inhibitRules": [_inhibition(rule) for rule in inhibitions()],
        "muteTimeIntervals": [
            {"name": interval["name"], "timeIntervals": interval["time_intervals"]} for interval in TIME_INTERVALS
        ],
        "receivers": [{"name": NO_RECEIVER}, *named(receivers)],
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
        job: scrape job.
        targets: fixed addresses, as `host:port`.
        discovery: EC2 service discovery (`ec2SDConfigs`); the label `instance` is the EC2 instance id.
        labels: labels of every series.
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
        **({"staticConfigs": [{"targets": fixed}]} if (fixed := list(targets)) else {}),
        **({"ec2SDConfigs": discovered} if discovered else {}),
        "relabelings": relabelings,
        **({"metricRelabelings": keep} if keep else {}),
    }


def _route(route: Mapping[str, Any]) -> dict[str, Any]:
    """Return a route and its children in the operator's spelling."""
    spelled: dict[str, Any] = {_camel(key): value for key, value in route.items()}
    if "matchers" in spelled:
        spelled["matchers"] = [_matcher(text) for text in spelled["matchers"]]
    if "routes" in spelled:
        spelled["routes"] = [_route(child) for child in spelled["routes"]]
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
        raise ValueError(f'matcher {text!r}: expected a name, an operator and a quoted value, e.g. severity="critical"')
    return {"name": found["name"], "matchType": found["type"], "value": found["value"]}


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)
