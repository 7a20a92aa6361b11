"""The list of the daemons and tools of a stack's machines: `LISTED`.

It determines the rows of `observatory status`, the packages of the local root filesystem and of EC2 machines, systemd's
services, the ports that the operations VPC reaches, Prometheus' scrape jobs and the alert on a job that does not
respond. To add a daemon, write its unit (a module of this package), its component and an entry here.

The order is that of Prometheus' scrape jobs; the `priority` of a unit decides the order of the starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from monitoring import JOBS
from observatory.documents.rollout import RolloutDocument
from observatory.nodes.alertmanager import alert_receiver, alertmanager
from observatory.nodes.collector import collector, machine_collector
from observatory.nodes.etcd import etcd
from observatory.nodes.exporters import (
    node_exporter,
    pgbackrest_exporter,
    pgbouncer_exporter,
    postgres_exporter,
    redis_exporter,
)
from observatory.nodes.haproxy import haproxy
from observatory.nodes.pgbackrest import S3Repository
from observatory.nodes.pgbouncer import pgbouncer
from observatory.nodes.postgres import patroni
from observatory.nodes.prometheus import Scrape, prometheus
from observatory.nodes.request_metrics import request_metrics
from observatory.nodes.storage import fleet_machine_storage, instance_label, storage
from observatory.nodes.unit import Host, Paths, Unit
from observatory.nodes.valkey import valkey
from observatory.settings import FLEETS, AwsSettings, FleetName, LocalSettings

Machine = Literal["local", "database", "fleet"]
"""A kind of machine: the machine of a local stack, or on AWS the database's or a fleet's."""


@dataclass(frozen=True, kw_only=True)
class LocalMachine:
    """The input for rendering the units of a local stack."""

    settings: LocalSettings
    rollout: RolloutDocument
    stack: str
    paths: Paths = field(default_factory=Paths)

    @property
    def instances(self) -> dict[FleetName, tuple[int, ...]]:
        """The ports of each fleet's instances."""
        size = self.settings.fleets.size
        return {fleet: tuple(getattr(self.settings.ports, fleet) + index for index in range(size)) for fleet in FLEETS}


@dataclass(frozen=True, kw_only=True)
class DatabaseMachine:
    """The input for rendering the units of a database's machine.

    Attributes:
        settings: the stack's.
        paths: of the machine.
        host: its addresses.
        volumes: mount points of its volumes.
        buckets: where backups and WAL go.
        cache_url: address of the cache.
    """

    settings: AwsSettings
    paths: Paths
    host: Host
    volumes: tuple[str, ...]
    buckets: tuple[S3Repository, ...]
    cache_url: str


@dataclass(frozen=True, kw_only=True)
class FleetMachine:
    """The input for rendering the units of a fleet's machine; `database` is the address of the pooler."""

    settings: AwsSettings
    paths: Paths
    host: Host
    fleet: FleetName
    database: str
    cache_url: str


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """A daemon: its packages, its units on each kind of machine, its scrape jobs and limits.

    Attributes:
        name: of the daemon, and of its unit if it has only one.
        packages: Debian packages that it needs.
        version_of: the package that has the daemon's version; default: the first of `packages`.
        local: returns its units on a local stack; None if it does not run there.
        database: the same on a database's machine.
        fleet: the same on a fleet's machine.
        scrapes: its scrape jobs.
        packaged_services: services of its packages that must not run, because the unit runs the same daemon.
        memory_max: systemd's `MemoryMax`; None if its own settings limit its memory.
    """

    name: str
    packages: tuple[str, ...] = ()
    version_of: str | None = None
    local: Callable[[LocalMachine], Iterable[Unit]] | None = None
    database: Callable[[DatabaseMachine], Iterable[Unit]] | None = None
    fleet: Callable[[FleetMachine], Iterable[Unit]] | None = None
    scrapes: tuple[Scrape, ...] = ()
    packaged_services: tuple[str, ...] = ()
    memory_max: str | None = None

    @property
    def machines(self) -> tuple[Machine, ...]:
        """The kinds of machines that it runs on."""
        return tuple(machine for machine in get_args(Machine) if getattr(self, machine) is not None)

    @property
    def version_package(self) -> str | None:
        """The package that has the daemon's version; None for a daemon without a package."""
        return self.version_of or next(iter(self.packages), None)


@dataclass(frozen=True, kw_only=True)
class Tool:
    """Packages of programs that are not daemons, and the kinds of machines that need them."""

    packages: tuple[str, ...]
    machines: tuple[Machine, ...]


_JOBS = {job.name: job for job in JOBS}
_HELPER_MEMORY = "512M"  # systemd's limit for the daemons beside PostgreSQL; PostgreSQL itself has none
_EXPORTER_MEMORY = "256M"


def _exporter(name: str, unit: Callable[..., Unit], *, job: str, port: str) -> Daemon:
    """Return an exporter that needs only the machine's addresses; its package has the name of its service."""
    package = f"prometheus-{name}"
    return Daemon(
        name=name,
        packages=(package,),
        local=lambda at: (unit(at.settings, at.paths),),
        database=lambda at: (unit(at.settings, at.paths, at.host),),
        scrapes=(Scrape(job=_JOBS[job], port=port, guarded=True),),
        packaged_services=(package,),
        memory_max=_EXPORTER_MEMORY,
    )


def _instances(at: LocalMachine) -> Iterator[Unit]:
    """Yield each fleet's instances, with the releases that the rollout document names."""
    for fleet in FLEETS:
        for index in range(1, at.settings.fleets.size + 1):
            release = at.rollout.fleet(fleet).release(instance_label(fleet, index))
            yield storage(
                at.settings, at.paths, fleet=fleet, index=index, version=release.version, sha256=release.sha256
            )


LISTED: tuple[Daemon | Tool, ...] = (
    Daemon(
        name="prometheus",
        packages=("prometheus", "promtool"),
        local=lambda at: (
            prometheus(at.settings, at.paths, stack=at.stack, instances=at.instances, scrapes=scrapes("local")),
        ),
        scrapes=(Scrape(job=_JOBS["prometheus"], port="prometheus", guarded=True),),
    ),
    Daemon(
        name="alertmanager",
        packages=("prometheus-alertmanager",),
        local=lambda at: (alertmanager(at.settings, at.paths),),
        scrapes=(Scrape(job=_JOBS["alertmanager"], port="alertmanager", guarded=True),),
    ),
    replace(
        _exporter("node-exporter", node_exporter, job="node", port="node_exporter"),
        database=lambda at: (node_exporter(at.settings, at.paths, at.host, volumes=at.volumes),),
    ),
    _exporter("postgres-exporter", postgres_exporter, job="postgres", port="postgres_exporter"),
    Daemon(
        name="collector",
        packages=("python3",),  # Patroni brings its psycopg2
        local=lambda at: (collector(at.settings, at.paths),),
        scrapes=(Scrape(job=_JOBS["collector"], port="balancer_stats", guarded=True),),
    ),
    Daemon(
        name="collector",
        packages=("python3-psycopg2",),
        database=lambda at: (machine_collector(at.settings, at.paths, at.host),),
        scrapes=(Scrape(job=_JOBS["collector"], port="collector"),),
        memory_max=_EXPORTER_MEMORY,
    ),
    Daemon(
        name="patroni",
        packages=(
            *("postgresql-17", "postgresql-17-cron", "postgresql-17-timescaledb"),
            *("patroni", "python3-etcd"),
        ),
        version_of="patroni",
        local=lambda at: (patroni(at.settings, at.paths),),
        database=lambda at: (patroni(at.settings, at.paths, at.host, buckets=at.buckets),),
        scrapes=(Scrape(job=_JOBS["patroni"], port="patroni"),),
        packaged_services=("patroni", "postgresql"),
    ),
    _exporter("pgbouncer-exporter", pgbouncer_exporter, job="pgbouncer", port="pgbouncer_exporter"),
    _exporter("pgbackrest-exporter", pgbackrest_exporter, job="pgbackrest", port="pgbackrest_exporter"),
    replace(
        _exporter("redis-exporter", redis_exporter, job="redis", port="redis_exporter"),
        database=lambda at: (redis_exporter(at.settings, at.paths, at.host, address=at.cache_url),),
    ),
    Daemon(
        name="etcd",
        packages=("etcd-client", "etcd-server"),
        version_of="etcd-server",
        local=lambda at: (etcd(at.settings, at.paths),),
        database=lambda at: (etcd(at.settings, at.paths, at.host),),
        scrapes=(Scrape(job=_JOBS["etcd"], port="etcd_metrics"),),
        packaged_services=("etcd",),
        memory_max=_HELPER_MEMORY,
    ),
    Daemon(
        name="haproxy",
        packages=("haproxy",),
        local=lambda at: (haproxy(at.settings, at.paths, instances=at.instances),),
        scrapes=(
            Scrape(job=_JOBS["haproxy"], port="balancer_stats", guarded=True),
            Scrape(job=_JOBS["haproxy-weights"], port="balancer_stats", guarded=True),
        ),
    ),
    Daemon(
        name="request-metrics",
        packages=("python3",),
        local=lambda at: (request_metrics(at.settings, at.paths),),
        scrapes=(Scrape(job=_JOBS["haproxy-requests"], port="balancer_stats", guarded=True),),
    ),
    Daemon(
        name="storage",
        local=_instances,
        fleet=lambda at: (
            fleet_machine_storage(
                at.settings, at.paths, at.host, fleet=at.fleet, database=at.database, cache_url=at.cache_url
            ),
        ),
        scrapes=(Scrape(job=_JOBS["storage"]),),
        memory_max="75%",  # of the machine, which runs little else
    ),
    Tool(packages=("pgbackrest",), machines=("local", "database")),
    Daemon(
        name="pgbouncer",
        packages=("pgbouncer",),
        local=lambda at: (pgbouncer(at.settings, at.paths),),
        database=lambda at: (pgbouncer(at.settings, at.paths, at.host),),
        packaged_services=("pgbouncer",),
        memory_max=_HELPER_MEMORY,
    ),
    Tool(packages=("xfsprogs",), machines=("database",)),  # for the file systems of its volumes
    Daemon(
        name="valkey",
        packages=("valkey-server", "valkey-tools"),
        local=lambda at: (valkey(at.settings, at.paths),),
    ),
    Daemon(
        name="alert-receiver",
        packages=("python3",),
        local=lambda at: (alert_receiver(at.settings, at.paths),),
    ),
    Tool(packages=("logrotate", "wrk", "postgresql-17-pgaudit"), machines=("local",)),
)


def daemons() -> list[Daemon]:
    """Return the daemons of the list."""
    return [entry for entry in LISTED if isinstance(entry, Daemon)]


def local_units(at: LocalMachine) -> list[tuple[Daemon, Unit]]:
    """Return the units of a local stack with their daemons, in the order of their start."""
    listed = [(daemon, unit) for daemon in daemons() if daemon.local for unit in daemon.local(at)]
    return sorted(listed, key=lambda entry: entry[1].priority)


def database_units(at: DatabaseMachine) -> list[Unit]:
    """Return the units of a database's machine, in the order of their start."""
    return _ordered(unit for daemon in daemons() if daemon.database for unit in daemon.database(at))


def fleet_units(at: FleetMachine) -> list[Unit]:
    """Return the units of a fleet's machine, in the order of their start."""
    return _ordered(unit for daemon in daemons() if daemon.fleet for unit in daemon.fleet(at))


def packages(machine: Machine) -> tuple[str, ...]:
    """Return the Debian packages of a kind of machine: in the order of the list, exporters last."""
    needed = [package for entry in LISTED if machine in entry.machines for package in entry.packages]
    return tuple(sorted(needed, key=lambda package: package if package.startswith("prometheus-") else ""))


def packaged_services(machine: Machine) -> list[str]:
    """Return the services of the packages that must not run on a kind of machine."""
    return sorted(service for daemon in _on(machine) for service in daemon.packaged_services)


def memory_limits(machine: Machine) -> dict[str, str]:
    """Return systemd's `MemoryMax` of a kind of machine's daemons that have one, by name."""
    return {daemon.name: daemon.memory_max for daemon in _on(machine) if daemon.memory_max}


def scrapes(*machines: Machine) -> tuple[Scrape, ...]:
    """Return the scrape jobs of these kinds of machines."""
    return tuple(scrape for daemon in daemons() if {*machines} & {*daemon.machines} for scrape in daemon.scrapes)


def _on(machine: Machine) -> Iterator[Daemon]:
    return (daemon for daemon in daemons() if machine in daemon.machines)


def _ordered(units: Iterable[Unit]) -> list[Unit]:
    return sorted(units, key=lambda unit: unit.priority)
