"""What runs where on the `local` stack: every daemon with its address, version, process and health.

Reads the living thing (supervisor, sockets, `/proc`), never the stack's state, so that it is true when they differ.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from observatory.documents.rollout import RolloutDocument
from observatory.nodes import Paths, TcpReady, Unit
from observatory.nodes.alertmanager import alert_receiver, alertmanager
from observatory.nodes.etcd import etcd
from observatory.nodes.exporters import (
    node_exporter,
    pgbackrest_exporter,
    pgbouncer_exporter,
    postgres_exporter,
    redis_exporter,
)
from observatory.nodes.haproxy import haproxy
from observatory.nodes.pgbouncer import pgbouncer
from observatory.nodes.postgres import patroni
from observatory.nodes.prometheus import prometheus
from observatory.nodes.storage import instance_label, storage
from observatory.nodes.valkey import valkey
from observatory.runtime import Probe, Sandbox, package_versions
from observatory.scheduling.scheduler_process import scheduler_pid, scheduler_ready
from observatory.settings import FLEETS, FleetName, LocalSettings

PACKAGES = {
    "etcd": "etcd-server",
    "patroni": "patroni",
    "pgbouncer": "pgbouncer",
    "valkey": "valkey-server",
    "haproxy": "haproxy",
    "node-exporter": "prometheus-node-exporter",
    "postgres-exporter": "prometheus-postgres-exporter",
    "pgbouncer-exporter": "prometheus-pgbouncer-exporter",
    "pgbackrest-exporter": "prometheus-pgbackrest-exporter",
    "redis-exporter": "prometheus-redis-exporter",
    "alert-receiver": "python3",
    "alertmanager": "prometheus-alertmanager",
    "prometheus": "prometheus",
}
POSTGRES_PACKAGES = ("postgresql-17", "postgresql-17-timescaledb")


@dataclass(frozen=True, kw_only=True)
class DaemonStatus:
    """One daemon: `health` is `ready`, `not ready` or the supervisor's word for why it does not run; PSS in MiB."""

    name: str
    address: str
    version: str
    pid: int | None
    health: str
    memory_mb: int | None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a plain mapping."""
        return asdict(self)


def stack_units(settings: LocalSettings, rollout: RolloutDocument, stack: str) -> list[tuple[Unit, str | None]]:
    """Return every unit of the stack, in the order of their start, with the version of those that a rollout chooses."""
    paths = Paths()
    fleets = {name: list(_fleet_units(settings, rollout, name, paths)) for name in FLEETS}
    ports = {name: tuple(port for unit in units for port in unit.ports.values()) for name, units in fleets.items()}
    others = (
        haproxy(settings, paths, instances=ports),
        node_exporter(settings, paths),
        postgres_exporter(settings, paths),
        pgbouncer_exporter(settings, paths),
        pgbackrest_exporter(settings, paths),
        redis_exporter(settings, paths),
        alert_receiver(settings, paths),
        alertmanager(settings, paths),
        prometheus(settings, paths, stack=stack, instances=ports),
    )
    instances = [
        (unit, rollout.fleet(name).release(instance_label(name, index)).version)
        for name, units in fleets.items()
        for index, unit in enumerate(units, start=1)
    ]
    node = [unit(settings, paths) for unit in (etcd, patroni, pgbouncer, valkey)]
    return [*((unit, None) for unit in node), *instances, *((unit, None) for unit in others)]


def _fleet_units(settings: LocalSettings, rollout: RolloutDocument, name: FleetName, paths: Paths) -> Iterator[Unit]:
    for index in range(1, settings.fleets.size + 1):
        release = rollout.fleet(name).release(instance_label(name, index))
        yield storage(settings, paths, fleet=name, index=index, version=release.version, sha256=release.sha256)


def daemon_statuses(
    sandbox: Sandbox, settings: LocalSettings, rollout: RolloutDocument, stack: str
) -> list[DaemonStatus]:
    """Return the status of every daemon that the stack should have."""
    versions = {name: upstream_version(version) for name, version in package_versions(sandbox.rootfs).items()}
    rows = []
    for unit, version in stack_units(settings, rollout, stack):
        rows.append(_status(sandbox, unit, version or versions.get(PACKAGES[unit.name], "?")))
        if unit.name == "patroni":
            rows.append(_postgres_status(sandbox, settings, versions))
    return [*rows, _scheduler_status(sandbox)]


def _status(sandbox: Sandbox, unit: Unit, version: str) -> DaemonStatus:
    address = f"127.0.0.1:{unit.ready.port}"
    if not sandbox.alive():
        return DaemonStatus(
            name=unit.name, address=address, version=version, pid=None, health="sandbox down", memory_mb=None
        )
    program = sandbox.supervisor.status(unit.name)
    ready = program.running and Probe(**unit.ready.target()).check()
    health = "ready" if ready else "not ready" if program.running else program.state.lower()
    return DaemonStatus(
        name=unit.name,
        address=address,
        version=version,
        pid=program.pid,
        health=health,
        memory_mb=process_memory_mb(program.pid),
    )


def _postgres_status(sandbox: Sandbox, settings: LocalSettings, versions: dict[str, str]) -> DaemonStatus:
    """PostgreSQL is Patroni's child, not the supervisor's: its pid stands in the data directory."""
    ready = TcpReady(port=settings.ports.postgres)
    running = sandbox.alive() and Probe(**ready.target()).check()
    pid_file = sandbox.home / "data" / "postgres" / "postmaster.pid"
    pid = int(pid_file.read_text().split()[0]) if running and pid_file.exists() else None
    version, timescaledb = (versions.get(package, "?") for package in POSTGRES_PACKAGES)
    return DaemonStatus(
        name="postgresql",
        address=f"127.0.0.1:{ready.port}",
        version=f"{version} + timescaledb {timescaledb}",
        pid=pid,
        health="ready" if running else "not ready",
        memory_mb=process_memory_mb(pid),
    )


def _scheduler_status(sandbox: Sandbox) -> DaemonStatus:
    """The scheduler is a process of the host, found by the lock that it holds."""
    pid = scheduler_pid(sandbox)
    return DaemonStatus(
        name="scheduler",
        address="-",
        version=metadata.version("apscheduler"),
        pid=pid,
        health="ready" if scheduler_ready(sandbox) else "not ready" if pid else "stopped",
        memory_mb=process_memory_mb(pid),
    )


def upstream_version(debian: str) -> str:
    """Return a Debian version without epoch and packaging revision: `17.6` of `17.6-0+deb13u1`."""
    return re.split(r"[-+~]", debian.rpartition(":")[2])[0]


def process_memory_mb(pid: int | None) -> int | None:
    """Return the proportional set size of a process with its descendants, in MiB, or None where it cannot be read."""
    if pid is None:
        return None
    sizes = [size for member in _family(pid) if (size := _pss_kb(member)) is not None]
    return sum(sizes) // 1024 if sizes else None


def _family(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):  # it has ended meanwhile
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _family(int(child))


def _pss_kb(pid: int) -> int | None:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    match = re.search(r"^Pss:\s+(\d+) kB$", rollup, flags=re.MULTILINE)
    return int(match.group(1)) if match else None
