"""Monitoring of a stack by an existing Prometheus Operator: rules, routes, scrape jobs, dashboards, network policies.

Owns the stack's resources in the cluster. `monitoring` defines alerts, routes and dashboards; Prometheus, Alertmanager,
Grafana and the Secrets that receivers name belong to the cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi_kubernetes.apiextensions import CustomResource
from pulumi_kubernetes.core.v1 import ConfigMap
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs
from pulumi_kubernetes.networking.v1 import NetworkPolicy

from components.network_policies import network_policies
from monitoring import Scope, alertmanager_config, prometheus_rule, scrape_config
from monitoring.alertmanager import Receiver
from monitoring.dashboards import DASHBOARDS, Dashboard
from monitoring.dashboards.files import of_stack
from monitoring.model import dashboard_uid
from monitoring.notification_templates import email_content, inline, pagerduty_content, slack_content
from monitoring.prometheus_operator import content
from observatory.nodes.alertmanager import maintenance_windows
from observatory.nodes.daemons import scrapes
from observatory.nodes.prometheus import Scrape, thresholds
from observatory.settings import FLEETS, PROJECT, AwsSettings, FleetName
from observatory.settings.aws import Receivers, SecretKey

GROUP = "monitoring.coreos.com"
VERSIONS = {"PrometheusRule": "v1", "AlertmanagerConfig": "v1alpha1", "ScrapeConfig": "v1alpha1"}
DISCOVERY_INTERVAL = "10s"  # shorter than an instance is down before StorageInstanceDown fires
DASHBOARD_LABEL = {"grafana_dashboard": "1"}  # by which Grafana's sidecar selects, as its Helm chart has it


@dataclass(frozen=True, kw_only=True)
class MonitoringArgs:
    """The stack's name and settings, and the address of its database's machine."""

    stack: str
    settings: AwsSettings
    database_address: str


class Monitoring(pulumi.ComponentResource):
    """The stack's resources in the cluster. Outputs: `prometheus_url`, `alertmanager_url`."""

    def __init__(self, name: str, args: MonitoringArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:kubernetes:Monitoring", name, None, opts)
        self._args = args
        cluster = args.settings.kubernetes
        jobs = scrapes("database", "fleet")
        scope = Scope(
            stack=args.stack,
            runbooks=cluster.runbooks_url,
            dashboards=cluster.dashboards_url,
            thresholds=thresholds(args.settings),
            platform="aws",
            jobs=tuple(scrape.job for scrape in jobs),
        )
        self._resource("PrometheusRule", "rules", prometheus_rule(scope, namespace=cluster.namespace))
        routes = alertmanager_config(
            scope,
            operator_receivers(args.settings.receivers),
            maintenance=maintenance_windows(args.settings),
        )
        self._resource("AlertmanagerConfig", "routes", routes)
        for scrape in jobs:
            for suffix, specification in self._scrapes(scrape):
                self._resource("ScrapeConfig", f"{scrape.job.name}{suffix}", specification)
        for dashboard in DASHBOARDS:
            self._dashboard(dashboard)
        self._policies()
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
            "filters": [
                *({"name": f"tag:{key}", "values": [value]} for key, value in tags.items()),
                # A machine that is shut down, as the scaling does, is no target before its service has stopped.
                {"name": "instance-state-name", "values": ["running"]},
            ],
            "refreshInterval": DISCOVERY_INTERVAL,
        }

    def _dashboard(self, dashboard: Dashboard) -> None:
        """Declare a dashboard as a ConfigMap that Grafana's sidecar loads.

        Its name is fixed, so a change deletes the old one first: the sidecar removes a dashboard's file when a
        ConfigMap that had it goes, also where another one has it too.
        """
        stack = self._args.stack
        file = f"{dashboard_uid(dashboard.name, stack=stack)}.json"
        ConfigMap(
            f"dashboard-{dashboard.name}",
            metadata=self._metadata(f"dashboard-{dashboard.name}", **DASHBOARD_LABEL),
            data={file: of_stack(dashboard, "aws", stack=stack)},
            opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True),
        )

    def _policies(self) -> None:
        """Declare the network policies, in the namespace of the pods."""
        settings = self._args.settings
        if (policies := settings.kubernetes.network_policies) is None:
            return
        for pods, specification in network_policies(settings, policies, database=self._args.database_address).items():
            NetworkPolicy(
                f"{pods}-egress",
                metadata=self._metadata(f"{pods}-egress", namespace=policies.namespace),
                spec=specification,
                opts=pulumi.ResourceOptions(parent=self),
            )

    def _resource(self, kind: str, name: str, specification: Mapping[str, Any]) -> None:
        """Declare one custom resource."""
        CustomResource(
            name if kind != "ScrapeConfig" else f"scrape-{name}",
            api_version=f"{GROUP}/{VERSIONS[kind]}",
            kind=kind,
            metadata=self._metadata(name),
            spec=dict(specification),
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _metadata(self, name: str, *, namespace: str | None = None, **labels: str) -> ObjectMetaArgs:
        """Return a resource's metadata; its name contains the stack's, because stacks may share a namespace."""
        cluster = self._args.settings.kubernetes
        return ObjectMetaArgs(
            name=f"{PROJECT}-{self._args.stack}-{name}",
            namespace=namespace or cluster.namespace,
            labels={**cluster.labels, "app.kubernetes.io/part-of": PROJECT, "stack": self._args.stack, **labels},
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
