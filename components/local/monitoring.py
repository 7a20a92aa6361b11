"""Monitoring of the `local` stack: exporters, Prometheus, Alertmanager, and the receiver that stores notifications.

Owns the resources of these daemons. `monitoring` defines alerts and routes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pulumi

from components.certificates import MonitoringCertificate
from components.local.cache import Cache
from components.local.database import Database
from components.local.fleets import Fleet
from components.local.machine import Daemon, Machine
from components.local.traffic import Traffic
from observatory.nodes import Paths, Unit
from observatory.nodes.alertmanager import alert_receiver, alertmanager, receiver_secrets
from observatory.nodes.collector import collector
from observatory.nodes.daemons import scrapes
from observatory.nodes.exporters import (
    cache_password_file,
    cache_passwords,
    node_exporter,
    pgbackrest_exporter,
    pgbouncer_exporter,
    postgres_exporter,
    redis_exporter,
)
from observatory.nodes.prometheus import prometheus
from observatory.settings import FleetName, LocalSettings, read_secret


@dataclass(frozen=True, kw_only=True)
class MonitoringArgs:
    """The stack's name and checkout, the certificate of monitoring, and the parts that are monitored."""

    settings: LocalSettings
    root: Path
    machine: Machine
    trust: MonitoringCertificate
    stack: str
    database: Database
    cache: Cache
    fleets: Mapping[FleetName, Fleet]
    traffic: Traffic


class Monitoring(pulumi.ComponentResource):
    """Prometheus, Alertmanager and the exporters. Outputs: `prometheus_url`, `alertmanager_url`."""

    def __init__(self, name: str, args: MonitoringArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:local:Monitoring", name, None, opts)
        self._machine, self._trust = args.machine, args.trust
        settings, paths = args.settings, Paths()
        self._daemon(node_exporter(settings, paths))
        self._daemon(postgres_exporter(settings, paths), *args.database.ready)
        self._daemon(collector(settings, paths), *args.database.ready, args.traffic.balancer)
        self._daemon(pgbouncer_exporter(settings, paths), *args.database.pooled)
        self._daemon(pgbackrest_exporter(settings, paths), *args.database.ready)
        passwords = args.cache.exporter_password.apply(lambda password: cache_passwords(settings, password))
        self._daemon(redis_exporter(settings, paths), secret_files={cache_password_file(paths): passwords})
        receiver = self._daemon(alert_receiver(settings, paths))
        keys = {
            inside: read_secret(args.root / file, url=url)
            for inside, (file, url) in receiver_secrets(settings, paths).items()
        }
        pager = self._daemon(alertmanager(settings, paths), receiver, secret_files=keys)
        instances = {fleet: component.ports for fleet, component in args.fleets.items()}
        server = self._daemon(
            prometheus(settings, paths, stack=args.stack, instances=instances, scrapes=scrapes("local")), pager
        )
        self.prometheus_url = server.id.apply(lambda _: f"https://127.0.0.1:{settings.ports.prometheus}")
        self.alertmanager_url = pager.id.apply(lambda _: f"https://127.0.0.1:{settings.ports.alertmanager}")
        self.register_outputs({"prometheus_url": self.prometheus_url, "alertmanager_url": self.alertmanager_url})

    def _daemon(
        self, unit: Unit, *after: pulumi.Resource, secret_files: Mapping[str, pulumi.Input[str]] | None = None
    ) -> Daemon:
        options = self._child(*after)
        files = {**self._trust.files, **(secret_files or {})}
        return Daemon(unit.name, machine=self._machine, unit=unit, secret_files=files, opts=options)

    def _child(self, *after: pulumi.Resource) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(parent=self, depends_on=list(after), deleted_with=self._machine)
