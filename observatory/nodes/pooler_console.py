"""pgBouncer's console: replaces the pooler's connections, lets its clients wait, and lists them.

The console lets in the user `pgbouncer`, by peer on the socket, whose directory only the daemons' user can enter.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from collections.abc import Sequence
from typing import Protocol

from observatory.nodes.unit import Paths

PSQL = "/usr/lib/postgresql/17/bin/psql"
USER = "pgbouncer"  # the console's user, and its database
RECONNECT = "RECONNECT"  # for all databases; needs an administrator of the console, there is no smaller right
ANSWER_SECONDS = 15.0  # for an answer of the console
DRAIN_SECONDS = 2.0  # for transactions to end before the database stops
NOT_RUNNING = ("No such file or directory", "Connection refused")
STALE = "Prepared statements of its clients may fail with 'cached plan must not change result type'"


class Run(Protocol):
    """Runs a command line on the pooler's machine, as `observatory.runtime.Sandbox.run` does."""

    def __call__(  # noqa: D102 - see the class
        self, argv: Sequence[str], *, timeout: float | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]: ...


def console_command(paths: Paths, port: int, statement: str) -> tuple[str, ...]:
    """Return the command line of a statement of the console, for the pooler's machine and its daemons' user."""
    return (PSQL, "-XAt", "-h", paths.run, "-p", str(port), "-U", USER, "-d", USER, "-c", statement)


def reconnect(run: Run, paths: Paths, port: int, *, stack: str) -> str | None:
    """Let the pooler of a local stack replace each server connection when its transaction ends.

    A pooler keeps its connections when tables change, and with them statements that were prepared before. One that does
    not run has no connections, and needs nothing.

    Returns:
        A warning that names the pooler and the command to run, where it could not; otherwise None.
    """
    argv = console_command(paths, port, RECONNECT)
    reason = _failure(run, argv)
    if reason is None:
        return None
    return not_reconnected(f"127.0.0.1:{port}", reason, ("observatory", "exec", "-e", stack, "pgbouncer", "--", *argv))


def pause(run: Run, paths: Paths, port: int) -> None:
    """Keep new transactions waiting, and wait `DRAIN_SECONDS` at most for the running ones to end.

    The pooler stays paused until `resume`, or until it starts again. One that does not run has no clients.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):  # some still run: the database's shutdown ends them
        run(console_command(paths, port, "PAUSE"), timeout=DRAIN_SECONDS, check=False)


def resume(run: Run, paths: Paths, port: int) -> None:
    """End a pause; does nothing where there is none."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        run(console_command(paths, port, "RESUME"), timeout=ANSWER_SECONDS, check=False)


def _failure(run: Run, argv: Sequence[str]) -> str | None:
    """Run a statement of the console; return why it failed, and None also for a pooler that does not run."""
    try:
        done = run(argv, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"its console gave no answer within {ANSWER_SECONDS:.0f} s"
    if not done.returncode or any(reason in done.stderr for reason in NOT_RUNNING):
        return None
    return " ".join(done.stderr.split()) or f"psql ended with status {done.returncode}"


def not_reconnected(place: str, reason: str, command: Sequence[str]) -> str:
    """Return the warning for a pooler that kept its connections: what may fail, and the command that repairs it."""
    return f"pgbouncer at {place} kept its connections: {reason}. {STALE}. Run: {shlex.join(command)}"
