"""The status of the `local` stack's daemons: address, version, process, health and memory.

Reads the supervisor, sockets and processes, never the stack's state, so that it is right when the two differ. While no
supervisor answers, a daemon is the process of the sandbox that listens on the daemon's port.
"""

from __future__ import annotations

import contextlib
import http.client
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Self

from observatory import __version__
from observatory.documents.rollout import RolloutDocument
from observatory.nodes import TcpReady, Unit
from observatory.nodes.daemons import LocalMachine, local_units
from observatory.nodes.storage import instance_label, instance_name, unit_name
from observatory.platforms.platform import OFF, DaemonStatus
from observatory.runtime import Probe, ProgramStatus, Sandbox, SandboxError, listeners, package_versions
from observatory.runtime.process_tree import ProcessTree
from observatory.runtime.programs import SOCKET_NAME
from observatory.scheduling.scheduler_process import (
    CONSOLE,
    GUARD,
    NAME,
    WATCHER,
    console_pid,
    console_ready,
    guard_pid,
    guard_ready,
    scheduler_pid,
    scheduler_ready,
    watcher_pid,
    watcher_ready,
)
from observatory.settings import FLEETS, LocalSettings

VERSION_TIMEOUT_S = 1.0  # an instance answers in milliseconds; a frozen one never
POSTGRES_PACKAGES = ("postgresql-17", "postgresql-17-timescaledb")


def daemon_statuses(
    sandbox: Sandbox, settings: LocalSettings, rollout: RolloutDocument, stack: str
) -> list[DaemonStatus]:
    """Return the status of every daemon that the stack should have, and of the processes that keep them running."""
    versions = {name: upstream_version(version) for name, version in package_versions(sandbox.rootfs).items()}
    releases = dict(_release_versions(settings, rollout))
    units = local_units(LocalMachine(settings=settings, rollout=rollout, stack=stack))
    stopped = {unit_name(label) for fleet in FLEETS for label in rollout.fleet(fleet).stopped}
    running = _Running.read(sandbox, [unit.ready.port for _, unit in units])
    rows = []
    for daemon, unit in units:
        version = versions.get(daemon.version_package or "", "?")
        row = _status(sandbox, running, unit, releases.get(unit.name, version))
        if unit.name in releases:
            row = replace(row, running_version=reported_version(unit.ready.port))
        rows.append(replace(row, health=OFF) if unit.name in stopped and row.pid is None else row)
        if unit.name == "patroni":
            rows.append(_postgres_status(sandbox, settings, versions, running.processes))
    return [
        *rows,
        _supervisor_status(sandbox, running, versions.get("supervisor", "?")),
        *_host_statuses(sandbox, settings, running.processes),
    ]


@dataclass(frozen=True, kw_only=True)
class _Running:
    """The daemons that run: `programs` by name from the supervisor, or `listening` by port without a supervisor."""

    programs: Mapping[str, ProgramStatus] | None
    listening: Mapping[int, int | None]
    processes: ProcessTree

    @classmethod
    def read(cls, sandbox: Sandbox, ports: Collection[int]) -> Self:
        with contextlib.suppress(SandboxError):  # it died between the two calls
            if sandbox.alive():
                programs = {each.name: each for each in sandbox.supervisor.statuses()}
                return cls(programs=programs, listening={}, processes=ProcessTree.read())
        members = set(sandbox.members())
        found = listeners(ports) if members else []
        listening = {each.port: each.pid for each in found if each.pid in members}
        return cls(programs=None, listening=listening, processes=ProcessTree.read())


def _release_versions(settings: LocalSettings, rollout: RolloutDocument) -> Iterator[tuple[str, str]]:
    """Yield the version of each instance of the storage service, by the name of its unit."""
    for fleet in FLEETS:
        for index in range(1, settings.fleets.size + 1):
            yield instance_name(fleet, index), rollout.fleet(fleet).release(instance_label(fleet, index)).version


def _status(sandbox: Sandbox, running: _Running, unit: Unit, version: str) -> DaemonStatus:
    if running.programs is None:
        pid, state = running.listening.get(unit.ready.port), "stopped"
        process = pid is not None
    else:
        program = running.programs.get(unit.name) or ProgramStatus.absent(unit.name)
        pid, state, process = program.pid, program.state.lower(), program.running
    answers = process and not running.processes.stopped_of(pid or 0)
    ready = answers and Probe(**unit.ready.target(sandbox.host_path)).check()
    return DaemonStatus(
        name=unit.name,
        address=f"127.0.0.1:{unit.ready.port}",
        version=version,
        pid=pid,
        health="ready" if ready else "not ready" if process else state,
        memory_mb=_memory_mb(running.processes.family(pid or 0)),
    )


def reported_version(port: int) -> str | None:
    """Return the version that an instance of the service reports; None where it does not respond."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=VERSION_TIMEOUT_S)
    try:
        connection.request("GET", "/health/live")
        return connection.getresponse().getheader("X-Observatory-Version")
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _postgres_status(
    sandbox: Sandbox, settings: LocalSettings, versions: dict[str, str], processes: ProcessTree
) -> DaemonStatus:
    """Return PostgreSQL's status. It is Patroni's child, not the supervisor's: its pid is in the data directory."""
    ready = TcpReady(port=settings.ports.postgres)
    running = Probe(**ready.target(sandbox.host_path)).check()
    pid = _postmaster_pid(sandbox.home / "data" / "postgres" / "postmaster.pid") if running else None
    version, timescaledb = (versions.get(package, "?") for package in POSTGRES_PACKAGES)
    return DaemonStatus(
        name="postgresql",
        address=f"127.0.0.1:{ready.port}",
        version=f"{version} + timescaledb {timescaledb}",
        pid=pid,
        health="ready" if pid else "not ready",
        memory_mb=_memory_mb(processes.family(pid or 0)),
    )


def _postmaster_pid(file: Path) -> int | None:
    """Return the process that a server's file names; None if there is none, or it is still empty: it ends or starts."""
    with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
        return int(file.read_text(encoding="utf-8").split()[0])
    return None


def _supervisor_status(sandbox: Sandbox, running: _Running, version: str) -> DaemonStatus:
    """Return the status of the supervisor, which restarts the daemons."""
    pid = sandbox.supervisor_pid() if sandbox.home.is_dir() else None
    return DaemonStatus(
        name="supervisor",
        address=f"unix:run/{SOCKET_NAME}",
        version=version,
        pid=pid,
        health="stopped" if pid is None else "ready" if running.programs is not None else "not ready",
        memory_mb=_memory_mb([pid] if pid else []),  # its children have rows of their own
    )


def _host_status(name: str, version: str, pid: int | None, processes: ProcessTree, *, ready: bool) -> DaemonStatus:
    """Return the status of a process of the host, which is found by the lock that it holds."""
    health = "ready" if ready else "not ready" if pid else "stopped"
    memory = _memory_mb(processes.family(pid or 0))
    return DaemonStatus(name=name, address="-", version=version, pid=pid, health=health, memory_mb=memory)


def _host_statuses(sandbox: Sandbox, settings: LocalSettings, processes: ProcessTree) -> list[DaemonStatus]:
    """Return the status of the processes of the host."""

    def found(name: str, version: str, pid: int | None, *, ready: bool) -> DaemonStatus:
        return _host_status(name, version, pid, processes, ready=ready)

    return [
        _without_children(found(WATCHER, __version__, watcher_pid(sandbox), ready=watcher_ready(sandbox))),
        _without_children(found(GUARD, __version__, guard_pid(sandbox), ready=guard_ready(sandbox))),
        found(NAME, metadata.version("apscheduler"), scheduler_pid(sandbox), ready=scheduler_ready(sandbox)),
        replace(
            found(CONSOLE, __version__, console_pid(sandbox), ready=console_ready(sandbox)),
            address=f"127.0.0.1:{settings.ports.console}",
        ),
    ]


def _without_children(status: DaemonStatus) -> DaemonStatus:
    """Return the status of a process that starts others of the host again: those have rows of their own."""
    return replace(status, memory_mb=_memory_mb([status.pid] if status.pid else []))


def upstream_version(debian: str) -> str:
    """Return a Debian version without epoch and packaging revision: `17.6` of `17.6-0+deb13u1`."""
    return re.split(r"[-+~]", debian.rpartition(":")[2])[0]


def _memory_mb(pids: Iterable[int]) -> int | None:
    """Return the proportional set size of some processes together, in MiB, or None where none can be read."""
    import psutil  # noqa: PLC0415 - only where a stack runs

    sizes = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):  # it has ended
            sizes.append(psutil.Process(pid).memory_full_info().pss)
    return sum(sizes) // 1024**2 if sizes else None
