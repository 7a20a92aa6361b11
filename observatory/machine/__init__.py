"""The local runtime: one Debian root filesystem, one sandbox, one supervisor that owns every daemon.

Plain Python that knows neither Pulumi nor what the daemons are. Everything may be repeated and may run concurrently, in
threads and in processes: a killed `up` leaves half a stack behind, and the next one carries on from there.

    rootfs = ensure_rootfs(cache, progress=print)
    sandbox = Sandbox(home, rootfs)
    sandbox.start()
    sandbox.supervisor.apply(Program(name="etcd", command=("/usr/bin/etcd",)))
    sandbox.supervisor.wait_ready("etcd", Probe(tcp=("127.0.0.1", 2379)), timeout=30)
    sandbox.stop()
"""

from observatory.machine.errors import DaemonFailed, PortInUse, RootfsError, RuntimeFault, SandboxUnavailable
from observatory.machine.ports import check_ports, find_free_ports
from observatory.machine.probe import Probe
from observatory.machine.rootfs import ensure_rootfs, rootfs_path
from observatory.machine.sandbox import Sandbox
from observatory.machine.supervisor import Program, ProgramStatus, Supervisor

__all__ = [
    "DaemonFailed",
    "PortInUse",
    "Probe",
    "Program",
    "ProgramStatus",
    "RootfsError",
    "RuntimeFault",
    "Sandbox",
    "SandboxUnavailable",
    "Supervisor",
    "check_ports",
    "ensure_rootfs",
    "find_free_ports",
    "rootfs_path",
]
