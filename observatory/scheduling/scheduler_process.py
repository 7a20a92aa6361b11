"""Starts, finds and stops a stack's host processes: the scheduler, the watcher, the guard and the console."""

from __future__ import annotations

from pathlib import Path

from observatory.files.locks import FileLockHeldError
from observatory.files.reserve import Reserve
from observatory.runtime import Sandbox
from observatory.scheduling.host_process import (
    HostProcess,
    changing,
    process_id,
    process_ready,
    stop_holder,
    wanted_file,
)
from observatory.scheduling.host_process import lock_file as process_lock_file

NAME, WATCHER, GUARD, CONSOLE = "scheduler", "watcher", "guard", "console"
CONSOLE_MODULE = "observatory.console"  # a name: it imports the operations, which import this package
MIB = 1024**2
HOME_RESERVE_BYTES = 128 * MIB  # eight segments of WAL
STATE_RESERVE_BYTES = 16 * MIB  # documents and Pulumi state: some copies of a megabyte each


class SchedulerRunningError(FileLockHeldError):
    """The stack's scheduler is already running; nothing was started."""


def lock_file(sandbox: Sandbox) -> Path:
    """Return the lock file that a stack's scheduler holds while it runs."""
    return process_lock_file(sandbox, NAME)


def scheduler_pid(sandbox: Sandbox) -> int | None:
    """Return the process id of a stack's scheduler, None if none runs."""
    return process_id(sandbox, NAME)


def scheduler_ready(sandbox: Sandbox) -> bool:
    """Return whether the scheduler runs and its last heartbeat is recent."""
    return process_ready(sandbox, NAME)


def watcher_pid(sandbox: Sandbox) -> int | None:
    """Return the process id of a stack's watcher, None if none runs."""
    return process_id(sandbox, WATCHER)


def watcher_ready(sandbox: Sandbox) -> bool:
    """Return whether the watcher runs and its last heartbeat is recent."""
    return process_ready(sandbox, WATCHER)


def guard_pid(sandbox: Sandbox) -> int | None:
    """Return the process id of a stack's guard, None if none runs."""
    return process_id(sandbox, GUARD)


def guard_ready(sandbox: Sandbox) -> bool:
    """Return whether the guard runs and its last heartbeat is recent."""
    return process_ready(sandbox, GUARD)


def console_pid(sandbox: Sandbox) -> int | None:
    """Return the process id of a stack's console, None if none runs."""
    return process_id(sandbox, CONSOLE)


def console_ready(sandbox: Sandbox) -> bool:
    """Return whether the console runs and its last heartbeat is recent."""
    return process_ready(sandbox, CONSOLE)


def scheduler_process(sandbox: Sandbox, *, root: Path, stack: str) -> HostProcess:
    """Return the scheduler of a stack."""
    arguments = ("observatory", NAME, "--environment", stack)
    return HostProcess(name=NAME, arguments=arguments, sandbox=sandbox, root=root)


def watcher_process(sandbox: Sandbox, *, root: Path, stack: str) -> HostProcess:
    """Return the watcher of a stack."""
    return _process_of_a_module(WATCHER, f"{__package__}.{WATCHER}", sandbox, root, stack)


def guard_process(sandbox: Sandbox, *, root: Path, stack: str) -> HostProcess:
    """Return the guard of a stack."""
    return _process_of_a_module(GUARD, f"{__package__}.{GUARD}", sandbox, root, stack)


def console_process(sandbox: Sandbox, *, root: Path, stack: str) -> HostProcess:
    """Return the console of a stack."""
    return _process_of_a_module(CONSOLE, CONSOLE_MODULE, sandbox, root, stack)


def _process_of_a_module(name: str, module: str, sandbox: Sandbox, root: Path, stack: str) -> HostProcess:
    arguments = (module, str(root), stack, str(sandbox.home), str(sandbox.rootfs))
    return HostProcess(name=name, arguments=arguments, sandbox=sandbox, root=root)


def reserves(sandbox: Sandbox, root: Path) -> dict[str, Reserve]:
    """Return the disk reserves of a stack: of its home, and of the checkout's documents and state."""
    return {
        "home": Reserve(directory=sandbox.home, size=HOME_RESERVE_BYTES),
        "state": Reserve(directory=root / ".observatory", size=STATE_RESERVE_BYTES),
    }


def start_scheduler(sandbox: Sandbox, *, root: Path, stack: str) -> int:
    """Start a stack's scheduler, watcher, guard and console, after stopping running ones; return the scheduler's pid.

    Raises:
        DaemonFailed: one ended or did not become ready; with its last log lines.
    """
    sandbox.start()  # it runs; a stack of an earlier release records now that it should
    with changing(sandbox):
        wanted_file(sandbox).touch(mode=0o600)
        for name in (GUARD, WATCHER, CONSOLE):
            stop_holder(process_lock_file(sandbox, name))
        pid = scheduler_process(sandbox, root=root, stack=stack).start()  # not the jobs that a killed one left running
        watcher_process(sandbox, root=root, stack=stack).start()
        guard_process(sandbox, root=root, stack=stack).start()
        console_process(sandbox, root=root, stack=stack).start()
        return pid


def stop_scheduler(sandbox: Sandbox, *, root: Path | None = None) -> None:
    """Stop a stack's host processes and jobs, also jobs that a killed scheduler left running; idempotent.

    With `root`, the checkout, the disk reserves of the stack are released.

    Raises:
        DaemonFailed: a process does not end after SIGKILL.
    """
    if not sandbox.home.is_dir():
        return
    with changing(sandbox):
        wanted_file(sandbox).unlink(missing_ok=True)
        for name in (GUARD, WATCHER, CONSOLE, NAME):
            stop_holder(process_lock_file(sandbox, name))
        for job in sorted(lock_file(sandbox).parent.glob("job-*.lock")):
            stop_holder(job)
    for reserve in reserves(sandbox, root).values() if root else ():
        reserve.release()
