"""The balancer of the `local` stack: how much of the traffic each fleet gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi

from components.certificates import Authority, Certificate
from components.local.fleets import Fleet
from components.local.machine import Daemon, Machine
from observatory.delivery.rollout import FleetName
from observatory.nodes import Paths
from observatory.nodes.haproxy import SERVER, haproxy
from observatory.nodes.tls import combined_file
from observatory.settings import StackSettings


@dataclass(frozen=True, kw_only=True)
class TrafficArgs:
    """The fleets, who signs the certificate, and the percentage of the traffic that the rollout document gives each."""

    settings: StackSettings
    machine: Machine
    authority: Authority
    fleets: Mapping[FleetName, Fleet]
    weights: Mapping[FleetName, int]


class Traffic(pulumi.ComponentResource):
    """HAProxy. Outputs: `service_url`, weighted over the fleets, and `preview_url`, which goes where a header says."""

    def __init__(self, name: str, args: TrafficArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:local:Traffic", name, None, opts)
        unit = haproxy(
            args.settings,
            Paths(),
            instances={fleet: component.ports for fleet, component in args.fleets.items()},
            weights=args.weights,
        )
        after = [instance for fleet in args.fleets.values() for instance in fleet.instances]
        options = pulumi.ResourceOptions(parent=self, depends_on=after, deleted_with=args.machine)
        made = Certificate(SERVER, authority=args.authority, opts=pulumi.ResourceOptions(parent=self))
        combined = pulumi.Output.concat(made.certificate, made.key)
        secret_files = {combined_file(Paths(), SERVER): combined}
        balancer = Daemon("haproxy", machine=args.machine, unit=unit, secret_files=secret_files, opts=options)
        ports = args.settings.ports
        self.service_url = balancer.id.apply(lambda _: f"https://127.0.0.1:{ports.service_tls}")
        self.preview_url = balancer.id.apply(lambda _: f"http://127.0.0.1:{ports.preview}")
        self.register_outputs({"service_url": self.service_url, "preview_url": self.preview_url})
