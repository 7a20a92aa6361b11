"""The rules, routes and scrape jobs as specifications of the Prometheus Operator's custom resources.

PrometheusRule is `monitoring.coreos.com/v1`, AlertmanagerConfig and ScrapeConfig are `v1alpha1`. By default
(`OnNamespace`) the operator adds a matcher of the resource's namespace to every route and inhibition of an
AlertmanagerConfig. Every rule here therefore has that namespace as a label, and every inhibition has the stack as a
matcher: both match all alerts of the stack and no others, whichever matchers the operator adds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monitoring.alertmanager import (
    NO_RECEIVER,
    ROLLBACK,
    MaintenanceWindow,
    Receiver,
    check_receivers,
    named,
    routes,
    time_intervals,
)
from monitoring.inhibitions import inhibitions
from monitoring.matchers import Matcher
from monitoring.model import Scope
from monitoring.rules import rule_groups
from monitoring.scrape_jobs import Job

INTERVAL, TIMEOUT = "5s", "4s"  # as on `local`: detection takes most of the time between a fault and its page
PAIRS = ("details", "headers")  # mappings in Alertmanager, lists of a key and a value here
SPELLED = {"links": "pagerDutyLinkConfigs", "text": "alt"}  # in the content of a PagerDuty event


def prometheus_rule(scope: Scope, *, namespace: str) -> dict[str, Any]:
    """Return the specification of a PrometheusRule: the stack's rules, with the namespace as a label of each alert."""
    specification = rule_groups(scope)
    for group in specification["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["labels"]["namespace"] = namespace
    return specification


def alertmanager_config(
    scope: Scope,
    receivers: Mapping[Receiver, Mapping[str, Any]],
    *,
    maintenance: Sequence[MaintenanceWindow] = (),
) -> dict[str, Any]:
    """Return the specification of an AlertmanagerConfig that routes only the alerts of the stack.

    Args:
        scope: the stack.
        receivers: configuration of each receiver in the operator's keys, e.g. `{"pagerdutyConfigs": [...]}`.
        maintenance: hours in which only critical alerts are delivered.

    Raises:
        ValueError: a receiver has no configuration, so its alerts would not be delivered; or a window is not in UTC,
            the only time zone of the resource.
    """
    check_receivers(receivers)
    if zones := sorted({window.timezone for window in maintenance} - {"UTC"}):
        raise ValueError(f"maintenance windows in {zones}: AlertmanagerConfig has no time zones, use UTC")
    tree, own = routes(rollback=ROLLBACK in receivers, maintenance=bool(maintenance)), f'stack="{scope.stack}"'
    return {
        "route": _route({**tree, "matchers": [own]}),
        "inhibitRules": [_inhibition(rule, own) for rule in inhibitions()],
        "muteTimeIntervals": [_spelled(interval) for interval in time_intervals(maintenance)],
        "receivers": [{"name": NO_RECEIVER}, *named(receivers)],
    }


def content(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a notification, given in Alertmanager's keys, in the operator's."""
    spelled: dict[str, Any] = {}
    for name, value in settings.items():
        if name in PAIRS:
            spelled[name] = [{"key": key, "value": text} for key, text in value.items()]
        elif name == "links":
            spelled[SPELLED[name]] = [{SPELLED.get(key, key): text for key, text in link.items()} for link in value]
        else:
            spelled[_camel(name)] = value
    return spelled


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


def _inhibition(rule: Mapping[str, Any], own: str) -> dict[str, Any]:
    """Return an inhibition of alerts that match `own`: `equal` alone also holds where both alerts lack the label."""
    return {
        "sourceMatch": [_matcher(text) for text in (own, *rule["source_matchers"])],
        "targetMatch": [_matcher(text) for text in (own, *rule["target_matchers"])],
        "equal": list(rule["equal"]),
    }


def _matcher(text: str) -> dict[str, str]:
    matcher = Matcher.parse(text)
    return {"name": matcher.name, "matchType": matcher.operator, "value": matcher.value}


def _spelled(document: Any) -> Any:
    """Return a document with all its keys in the operator's spelling."""
    if isinstance(document, Mapping):
        return {_camel(key): _spelled(value) for key, value in document.items()}
    return [_spelled(each) for each in document] if isinstance(document, list) else document


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)
