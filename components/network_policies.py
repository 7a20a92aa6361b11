"""What Prometheus and Alertmanager of a cluster may reach for a stack, as specifications of NetworkPolicies.

Policies add up, and the first one that selects a pod isolates it. A stack therefore declares them only where its
settings say that the cluster's own policies deny by default. They allow connections out of the pods; the cluster allows
those between Prometheus, Alertmanager and their users.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pulumi_kubernetes.meta.v1 import LabelSelectorArgs
from pulumi_kubernetes.networking.v1 import (
    IPBlockArgs,
    NetworkPolicyEgressRuleArgs,
    NetworkPolicyPeerArgs,
    NetworkPolicyPortArgs,
    NetworkPolicySpecArgs,
)

from observatory.nodes.daemons import scrapes
from observatory.settings import FLEETS, AwsSettings
from observatory.settings.aws import NetworkPolicies

HTTPS, DNS = 443, 53
ANYWHERE = "0.0.0.0/0"


def network_policies(
    settings: AwsSettings, policies: NetworkPolicies, *, database: str
) -> dict[str, NetworkPolicySpecArgs]:
    """Return the specification of each policy by the name of the pods that it selects.

    `database` is the address of the database's machine.
    """
    exporters = [getattr(settings.ports, scrape.port) for scrape in scrapes("database") if scrape.port]
    instances = [getattr(settings.ports, fleet) for fleet in FLEETS]
    discovery = _allow(ANYWHERE, [HTTPS])  # EC2's interface, which lists the machines of the fleets
    prometheus = [_allow(f"{database}/32", exporters), _allow(str(settings.network.cidr), instances), discovery]
    mail = int(settings.receivers.email.smarthost.rpartition(":")[2])
    return {
        "prometheus": _policy(policies.prometheus, prometheus),
        "alertmanager": _policy(policies.alertmanager, [_allow(ANYWHERE, [HTTPS, mail])]),
    }


def _policy(pods: Mapping[str, str], egress: Iterable[NetworkPolicyEgressRuleArgs]) -> NetworkPolicySpecArgs:
    names = NetworkPolicyEgressRuleArgs(
        to=[NetworkPolicyPeerArgs(namespace_selector=LabelSelectorArgs())],
        ports=[NetworkPolicyPortArgs(protocol=protocol, port=DNS) for protocol in ("UDP", "TCP")],
    )
    return NetworkPolicySpecArgs(
        pod_selector=LabelSelectorArgs(match_labels=dict(pods)), policy_types=["Egress"], egress=[names, *egress]
    )


def _allow(network: str, ports: Iterable[int]) -> NetworkPolicyEgressRuleArgs:
    return NetworkPolicyEgressRuleArgs(
        to=[NetworkPolicyPeerArgs(ip_block=IPBlockArgs(cidr=network))],
        ports=[NetworkPolicyPortArgs(protocol="TCP", port=port) for port in sorted(set(ports))],
    )
