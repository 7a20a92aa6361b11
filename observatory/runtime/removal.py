"""Ends programs that must not run any more, without waiting longer for them than the caller has patience."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from observatory.runtime.programs import PROGRAMS, ProgramStatus
from observatory.runtime.supervisor import Supervisor
from observatory.runtime.supervisord_rpc import Fault, SupervisordRpc
from observatory.waiting import wait_until

if TYPE_CHECKING:
    import psutil

POLL_S = 0.2


def remove_programs(supervisor: Supervisor, names: Collection[str], *, patient: Callable[[], bool]) -> None:
    """Stop programs, all at once, and remove them from the supervisor; their logs and other files stay.

    As long as `patient` returns true each may take its own time to stop. Then it is killed with its children.

    Raises:
        SandboxError: the supervisor does not answer.
    """
    rpc = SupervisordRpc(supervisor.files.home)
    for name in names:
        supervisor.files.host_path(f"{PROGRAMS}/{name}.conf").unlink(missing_ok=True)  # a restart must not start it
        rpc.call_tolerating({Fault.NOT_RUNNING, Fault.BAD_NAME}, "stopProcess", name, False)
    signal_programs(supervisor, names, signal.SIGCONT)  # a stopped process handles no signal
    wait_until(lambda: rpc.have_ended(names) or not patient(), interval_s=POLL_S)
    signal_programs(supervisor, names, signal.SIGKILL)
    for name in names:
        supervisor.remove(name)


def signal_programs(supervisor: Supervisor, names: Collection[str], number: signal.Signals) -> None:
    """Send a signal to the processes of programs and to their children.

    Raises:
        SandboxError: the supervisor does not answer.
    """
    for status in supervisor.statuses():
        for process in _family(status) if status.name in names else ():
            with contextlib.suppress(_error()):
                process.send_signal(number)


def _family(status: ProgramStatus) -> Iterator[psutil.Process]:
    import psutil  # noqa: PLC0415 - only where a process is signalled

    if status.pid is None:
        return
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(status.pid)
        yield from (process, *process.children(recursive=True))


def _error() -> type[Exception]:
    import psutil  # noqa: PLC0415 - only where a process is signalled

    return psutil.Error
