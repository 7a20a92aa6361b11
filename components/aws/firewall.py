"""The allowed connections: a security group for each kind of machine, and all rules in one table.

The fleets reach the database through its pooler, the operations VPC directly. Only the balancer of a public service
accepts connections from the internet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import pulumi
from pulumi_aws import ec2, vpc

from components.aws.naming import tags
from components.aws.network import ANYWHERE
from observatory.nodes.daemons import scrapes
from observatory.settings import FLEETS, AwsSettings

Group = Literal["balancer", "preview", "fleets", "database", "cache"]
GROUPS: tuple[Group, ...] = get_args(Group)
HTTPS, HTTP = 443, 80


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One allowed connection: from a group or network, to a group or network, on a TCP port."""

    source: str
    target: str
    port: int

    @property
    def name(self) -> str:
        """The rule's logical name."""
        return f"{self.source}-{self.target}-{self.port}".replace("/", "-")


def rules(settings: AwsSettings) -> Iterator[Rule]:
    """Yield every allowed connection."""
    ports, operations = settings.ports, str(settings.operations_vpc.cidr)
    service_ports = [getattr(ports, fleet) for fleet in FLEETS]
    for cidr in settings.traffic.allowed_cidrs:
        yield Rule(source=str(cidr), target="balancer", port=HTTPS)
    yield Rule(source=operations, target="preview", port=HTTPS)
    for port in service_ports:
        yield Rule(source="balancer", target="fleets", port=port)
        yield Rule(source="preview", target="fleets", port=port)
        yield Rule(source=operations, target="fleets", port=port)  # metrics
    yield Rule(source="fleets", target="database", port=ports.pgbouncer)
    yield Rule(source="fleets", target="cache", port=ports.valkey)
    yield Rule(source="database", target="cache", port=ports.valkey)  # the cache's exporter
    metrics = [getattr(ports, scrape.port) for scrape in scrapes("database") if scrape.port]
    for port in (ports.postgres, ports.pgbouncer, *metrics):
        yield Rule(source=operations, target="database", port=port)
    for group in ("fleets", "database"):  # AWS' interfaces, and Debian's mirror
        yield Rule(source=group, target=ANYWHERE, port=HTTPS)
        yield Rule(source=group, target=ANYWHERE, port=HTTP)


@dataclass(frozen=True, kw_only=True)
class FirewallArgs:
    """The stack's name and settings, and its VPC."""

    stack: str
    settings: AwsSettings
    vpc_id: pulumi.Input[str]


class Firewall(pulumi.ComponentResource):
    """The security groups. Output: `groups`, their ids. `rules` has the resources of the allowed connections."""

    def __init__(self, name: str, args: FirewallArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:aws:Firewall", name, None, opts)
        self._args = args
        self.groups = {group: self._group(group) for group in GROUPS}
        self.rules = [made for rule in rules(args.settings) for made in self._allow(rule)]
        self.register_outputs({"groups": dict(self.groups)})

    def _group(self, group: Group) -> pulumi.Output[str]:
        made = ec2.SecurityGroup(
            group,
            description=f"{group} of the LLM Observatory",
            vpc_id=self._args.vpc_id,
            tags=tags(self._args.stack, group),
            opts=pulumi.ResourceOptions(parent=self),
        )
        return made.id

    def _allow(self, rule: Rule) -> Iterator[pulumi.Resource]:
        """Declare and yield the rules of a connection, at each of its ends that is a group."""
        options = pulumi.ResourceOptions(parent=self)
        named = tags(self._args.stack, rule.name)
        if (target := self._id(rule.target)) is not None:
            source = self._id(rule.source)
            yield vpc.SecurityGroupIngressRule(
                rule.name,
                security_group_id=target,
                referenced_security_group_id=source,
                cidr_ipv4=rule.source if source is None else None,
                ip_protocol="tcp",
                from_port=rule.port,
                to_port=rule.port,
                tags=named,
                opts=options,
            )
        if (source := self._id(rule.source)) is not None:
            yield vpc.SecurityGroupEgressRule(
                rule.name,
                security_group_id=source,
                referenced_security_group_id=target,
                cidr_ipv4=rule.target if target is None else None,
                ip_protocol="tcp",
                from_port=rule.port,
                to_port=rule.port,
                tags=named,
                opts=options,
            )

    def _id(self, end: str) -> pulumi.Output[str] | None:
        return next((made for group, made in self.groups.items() if group == end), None)
