"""Runs the local stack's daemons: a Debian root filesystem, a sandbox over one directory, a supervisor inside it.

    rootfs = ensure_rootfs(cache, ("etcd-server", ...), progress=show)
    sandbox = Sandbox(home, rootfs)
    check_ports({"ports.postgres": 5432}, ours=[process.pid for process in sandbox.processes()])
    sandbox.start()
    sandbox.supervisor.apply(Program(name="etcd", command=("/usr/bin/etcd", "--config-file", "/srv/etc/etcd.yaml")))
    sandbox.supervisor.wait_ready("etcd", Probe(http="http://127.0.0.1:2379/health"))

Every function is idempotent and safe to call from several threads and processes at once, so a killed run can be
repeated. The package does not depend on the daemons, the settings and Pulumi.
"""

from observatory.runtime.drift import Drift, find_drift
from observatory.runtime.errors import (
    DaemonFailed,
    PortInUse,
    RootfsError,
    RuntimeFault,
    SandboxError,
    SandboxUnavailable,
)
from observatory.runtime.haproxy import BalancerUnreachable, LiveCertificates, LiveMap, LiveServers
from observatory.runtime.ports import check_ports, find_free_ports, listeners
from observatory.runtime.probe import Probe
from observatory.runtime.programs import Program, ProgramStatus
from observatory.runtime.rootfs import Progress, ensure_rootfs, package_versions, rootfs_path
from observatory.runtime.sandbox import Process, Sandbox
from observatory.runtime.supervisor import Supervisor

__all__ = [
    "BalancerUnreachable",
    "DaemonFailed",
    "Drift",
    "LiveCertificates",
    "LiveMap",
    "LiveServers",
    "PortInUse",
    "Probe",
    "Process",
    "Program",
    "ProgramStatus",
    "Progress",
    "RootfsError",
    "RuntimeFault",
    "Sandbox",
    "SandboxError",
    "SandboxUnavailable",
    "Supervisor",
    "check_ports",
    "ensure_rootfs",
    "find_drift",
    "find_free_ports",
    "listeners",
    "package_versions",
    "rootfs_path",
]
