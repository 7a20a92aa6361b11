"""The fault of a slow disk: statements of a user wait for it on every CPU.

Programs of `COPY FROM PROGRAM` read a file of the machine's disk past its cache, in a control group that allows one
read a second. Nothing else is slowed down. The pressure is that of the whole machine: while another task runs on a CPU,
not all of them wait.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg

from proofs.alerts.faults.means import control_group
from proofs.alerts.monitored import Monitored
from proofs.alerts.round import Fault
from tests.support.crash import postmasters

FILE = "/usr/bin/dd"  # of the root filesystem, which lies on the machine's disk
SESSIONS = 2
# The reader ends when the statement is cancelled: nothing reads its next lines. PostgreSQL, which reads 64 KiB at once,
# notices the cancellation between two of these.
LINES = "yes 1 | head --bytes 131072"
READ = f"while {LINES}; do taskset --cpu-list $cpu dd if={FILE} of=/dev/null bs=4096 count=1 iflag=direct; done"
PROGRAM = f"for cpu in $(seq 0 $(($(nproc) - 1))); do ({READ}) 2> /dev/null & done; wait"
COPY = f"COPY lines FROM PROGRAM '{PROGRAM}'"
LIMITS = {  # of reads a second, in control groups of version 1 and 2
    "blkio.throttle.read_iops_device": ("{device} 1", "{device} 0"),
    "io.max": ("{device} riops=1", "{device} riops=max"),
}
DATABASE = "observatory"
MEMBER = "pg_execute_server_program"


@contextlib.contextmanager
def statements_wait_for_disk(stack: Monitored) -> Iterator[None]:
    """Run statements whose programs read a disk that allows one read a second."""
    with contextlib.ExitStack() as restored:
        group = restored.enter_context(control_group("blkio", f"observatory-proof-{stack.ports['postgres']}"))
        restored.enter_context(_limited(group, _disk(stack.sandbox.rootfs / FILE.lstrip("/"))))
        restored.enter_context(_member(stack))
        sessions = [restored.enter_context(psycopg.connect(stack.user, autocommit=True)) for _ in range(SESSIONS)]
        for session in sessions:
            session.execute("CREATE TEMP TABLE lines (n int)")
        threads = [threading.Thread(target=_read, args=(session,)) for session in sessions]
        for session, thread in zip(sessions, threads, strict=True):
            (group / "cgroup.procs").write_text(str(_process(stack, session.info.backend_pid)))
            thread.start()
        try:
            yield
        finally:
            for session, thread in zip(sessions, threads, strict=True):
                session.cancel_safe()
                thread.join()


def _read(session: psycopg.Connection) -> None:
    with contextlib.suppress(psycopg.Error):  # the commands of the runbook end it
        session.execute(COPY.encode())


def _disk(file: Path) -> str:
    """Return the number of the disk with a file; a limit is that of a whole disk, not of a partition."""
    device = file.stat().st_dev
    place = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    whole = place.resolve().parent if (place / "partition").exists() else place
    return (whole / "dev").read_text().strip()


@contextlib.contextmanager
def _limited(group: Path, device: str) -> Iterator[None]:
    name = next(name for name in LIMITS if (group / name).exists())
    limit, none = (text.format(device=device) for text in LIMITS[name])
    (group / name).write_text(limit)
    try:
        yield
    finally:
        (group / name).write_text(none)


@contextlib.contextmanager
def _member(stack: Monitored) -> Iterator[None]:
    """Let the user's statements run programs of the server, and have a table for what these print."""
    role = stack.superuser("SELECT rolname FROM pg_roles WHERE rolname = 'admin'")
    stack.superuser(f"GRANT {MEMBER} TO {role}")
    stack.superuser(f"GRANT TEMPORARY ON DATABASE {DATABASE} TO {role}")
    try:
        yield
    finally:
        stack.superuser(f"REVOKE TEMPORARY ON DATABASE {DATABASE} FROM {role}")
        stack.superuser(f"REVOKE {MEMBER} FROM {role}")


def _process(stack: Monitored, pid: int) -> int:
    """Return the process of this machine that has a number in PostgreSQL's sandbox."""
    for postmaster in postmasters(stack.checkout):
        for child in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
            if int(numbers[-1]) == pid:
                return int(child)
    raise RuntimeError(f"PostgreSQL has no process {pid}")


DISK_IO = (
    Fault(
        alert="StorageIoStall",
        what="the programs of two statements read from a disk that a control group limits to one read a second",
        inject=statements_wait_for_disk,
    ),
)
