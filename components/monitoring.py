"""Monitoring of a stack by an existing Prometheus Operator: rules, routes and scrape jobs as custom resources.

Owns the stack's custom resources. `monitoring` defines alerts and routes; Prometheus, Alertmanager and the Secrets that
receivers name belong to the cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi_kubernetes.apiextensions import CustomResource
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs

from monitoring import Scope, alertmanager_config, prometheus_rule, scrape_config
from monitoring.alertmanager import Receiver
from monitoring.notification_templates import email_content, inline, pagerduty_content, slack_content
from monitoring.prometheus_operator import content
from observatory.nodes.daemons import scrapes
from observatory.nodes.prometheus import Scrape
from observatory.settings import FLEETS, PROJECT, AwsSettings, FleetName
from observatory.settings.aws import Receivers, SecretKey

GROUP = "monitoring.coreos.com"
VERSIONS = {"PrometheusRule": "v1", "AlertmanagerConfig": "v1alpha1", "ScrapeConfig": "v1alpha1"}


@dataclass(frozen=True, kw_only=True)
class MonitoringArgs:
    """The stack's name and settings, and the address of its database's machine."""

    stack: str
    settings: AwsSettings
    database_address: str


class Monitoring(pulumi.ComponentResource):
    """The stack's custom resources in the cluster. Outputs: `prometheus_url`, `alertmanager_url`."""

    def __init__(self, name: str, args: MonitoringArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:kubernetes:Monitoring", name, None, opts)
        self._args = args
        cluster = args.settings.kubernetes
        jobs = scrapes("database", "fleet")
        scope = Scope(
            stack=args.stack,
            runbooks=cluster.runbooks_url,
            dashboards=cluster.dashboards_url,
            platform="aws",
            jobs=tuple(scrape.job for scrape in jobs),
        )
        self._resource("PrometheusRule", "rules", prometheus_rule(scope, namespace=cluster.namespace))
        routes = alertmanager_config(scope, operator_receivers(args.settings.receivers))
        self._resource("AlertmanagerConfig", "routes", routes)
        for scrape in jobs:
            for suffix, specification in self._scrapes(scrape):
                self._resource("ScrapeConfig", f"{scrape.job.name}{suffix}", specification)
        self.prometheus_url, self.alertmanager_url = cluster.prometheus_url, cluster.alertmanager_url
        self.register_outputs({"prometheus_url": self.prometheus_url, "alertmanager_url": self.alertmanager_url})

    def _scrapes(self, scrape: Scrape) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield a job's specifications: the database has a fixed address, the machines of a fleet are discovered."""
        stack = {"stack": self._args.stack}
        if scrape.port:
            target = f"{self._args.database_address}:{getattr(self._args.settings.ports, scrape.port)}"
            yield "", scrape_config(scrape.job, targets=[target], labels=stack)
            return
        for fleet in FLEETS:
            labels = {**stack, "fleet": fleet}
            yield f"-{fleet}", scrape_config(scrape.job, discovery=[self._fleet(fleet)], labels=labels)

    def _fleet(self, fleet: FleetName) -> dict[str, Any]:
        tags = {"Project": PROJECT, "Stack": self._args.stack, "Role": "fleet", "Fleet": fleet}
        return {
            "region": self._args.settings.account.region,
            "port": getattr(self._args.settings.ports, fleet),
            "filters": [{"name": f"tag:{key}", "values": [value]} for key, value in tags.items()],
        }

    def _resource(self, kind: str, name: str, specification: Mapping[str, Any]) -> None:
        """Declare one custom resource; its name contains the stack's, because stacks may share a namespace."""
        cluster = self._args.settings.kubernetes
        CustomResource(
            name if kind != "ScrapeConfig" else f"scrape-{name}",
            api_version=f"{GROUP}/{VERSIONS[kind]}",
            kind=kind,
            metadata=ObjectMetaArgs(
                name=f"{PROJECT}-{self._args.stack}-{name}",
                namespace=cluster.namespace,
                labels={**cluster.labels, "app.kubernetes.io/part-of": PROJECT, "stack": self._args.stack},
            ),
            spec=dict(specification),
            opts=pulumi.ResourceOptions(parent=self),
        )


def operator_receivers(receivers: Receivers) -> dict[Receiver, dict[str, Sequence[Mapping[str, Any]]]]:
    """Return the configuration of each receiver, in the operator's keys; secrets are references."""
    email = receivers.email
    rollback: dict[Receiver, dict[str, Sequence[Mapping[str, Any]]]] = {}
    if receivers.rollback_webhook:
        rollback["rollback"] = {"webhookConfigs": [_webhook(receivers.rollback_webhook, resolved=False)]}
    return {
        "watchdog": {"webhookConfigs": [_webhook(receivers.watchdog_webhook, resolved=False)]},
        "pagerduty": {
            "pagerdutyConfigs": [
                {
                    **content(pagerduty_content(inline)),
                    "routingKey": _key(receivers.pagerduty_routing_key),
                    "sendResolved": True,
                }
            ]
        },
        "slack": {
            "slackConfigs": [
                {
                    **content(slack_content(inline)),
                    "apiURL": _key(receivers.slack.webhook),
                    "channel": receivers.slack.channel,
                    "sendResolved": True,
                }
            ]
        },
        "email": {
            "emailConfigs": [
                {
                    **content(email_content(inline)),
                    "to": email.to,
                    "from": email.sender,
                    "smarthost": email.smarthost,
                    "authUsername": email.username,
                    "authPassword": _key(email.password),
                    "requireTLS": True,
                    "sendResolved": True,
                }
            ]
        },
        "ticket": {"webhookConfigs": [_webhook(receivers.ticket_webhook, resolved=True)]},
        **rollback,
    }


def _webhook(secret: SecretKey, *, resolved: bool) -> dict[str, Any]:
    return {"urlSecret": _key(secret), "sendResolved": resolved}


def _key(secret: SecretKey) -> dict[str, str]:
    return {"name": secret.name, "key": secret.key}
