"""The status of the `local` stack's daemons: address, version, process, health and memory.

Reads the supervisor, sockets and processes, never the stack's state, so that it is right when the two differ.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from importlib import metadata

from observatory.documents.rollout import RolloutDocument
from observatory.nodes import TcpReady, Unit
from observatory.nodes.daemons import LocalMachine, local_units
from observatory.nodes.storage import instance_label, instance_name
from observatory.platforms.platform import DaemonStatus
from observatory.runtime import Probe, Sandbox, package_versions
from observatory.scheduling.scheduler_process import scheduler_pid, scheduler_ready
from observatory.settings import FLEETS, LocalSettings

POSTGRES_PACKAGES = ("postgresql-17", "postgresql-17-timescaledb")


def daemon_statuses(
    sandbox: Sandbox, settings: LocalSettings, rollout: RolloutDocument, stack: str
) -> list[DaemonStatus]:
    """Return the status of every daemon that the stack should have."""
    versions = {name: upstream_version(version) for name, version in package_versions(sandbox.rootfs).items()}
    releases = dict(_release_versions(settings, rollout))
    rows = []
    for daemon, unit in local_units(LocalMachine(settings=settings, rollout=rollout, stack=stack)):
        version = versions.get(daemon.version_package or "", "?")
        rows.append(_status(sandbox, unit, releases.get(unit.name, version)))
        if unit.name == "patroni":
            rows.append(_postgres_status(sandbox, settings, versions))
    return [*rows, _scheduler_status(sandbox)]


def _release_versions(settings: LocalSettings, rollout: RolloutDocument) -> Iterator[tuple[str, str]]:
    """Yield the version of each instance of the storage service, by the name of its unit."""
    for fleet in FLEETS:
        for index in range(1, settings.fleets.size + 1):
            yield instance_name(fleet, index), rollout.fleet(fleet).release(instance_label(fleet, index)).version


def _status(sandbox: Sandbox, unit: Unit, version: str) -> DaemonStatus:
    address = f"127.0.0.1:{unit.ready.port}"
    if not sandbox.alive():
        return DaemonStatus(
            name=unit.name, address=address, version=version, pid=None, health="sandbox down", memory_mb=None
        )
    program = sandbox.supervisor.status(unit.name)
    ready = program.running and Probe(**unit.ready.target(sandbox.host_path)).check()
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
    """Return PostgreSQL's status. It is Patroni's child, not the supervisor's: its pid is in the data directory."""
    ready = TcpReady(port=settings.ports.postgres)
    running = sandbox.alive() and Probe(**ready.target(sandbox.host_path)).check()
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
    """Return the scheduler's status. It is a process of the host, found by the lock that it holds."""
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
    import psutil  # noqa: PLC0415 - only where a stack runs

    sizes = []
    with contextlib.suppress(psutil.Error):  # it has ended
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                sizes.append(member.memory_full_info().pss)
    return sum(sizes) // 1024**2 if sizes else None
