"""Direct access to a stack's daemons: their logs, a session of psql, a command beside a daemon."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from observatory.errors import WRONG_USAGE
from observatory.operations.stack_outputs import outputs
from observatory.platforms import open_platform
from observatory.platforms.errors import OperationError, StackNotUpError
from observatory.platforms.platform import Operation, check_supported
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.nodes import Unit

PSQL = "/usr/bin/psql"
SHELL_VARIABLES = ("TERM", "COLUMNS", "LINES", "PAGER", "LESS", "PSQL_PAGER")  # of the caller's terminal


class UnknownDaemonError(OperationError):
    """The stack has no daemon with this name."""

    exit_code = WRONG_USAGE


def log_file(workspace: Workspace, name: str) -> Path:
    """Return the file that has the log of a daemon, of the scheduler or of the supervisor.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack was never up, or its platform is not supported.
        UnknownDaemonError: there is no such log.
    """
    check_supported(open_platform(workspace), "logs")
    directory = workspace.home / "log"
    if not directory.is_dir():
        raise StackNotUpError(workspace.stack)
    files = [path for path in sorted(directory.glob("*.log")) if path.is_file() and not path.is_symlink()]
    found = {path.name.removesuffix(".log"): path for path in files}
    if name not in found:
        raise UnknownDaemonError(f"no log {name!r} in {directory} (logs: {', '.join(found)})")
    return found[name]


def read_log(workspace: Workspace, name: str, *, lines: int = 100) -> list[str]:
    """Return the last lines of a log, the oldest first; see `log_file` for what it raises."""
    from collections import deque  # noqa: PLC0415 - only here

    with log_file(workspace, name).open(errors="replace") as log:
        return [line.rstrip("\n") for line in deque(log, maxlen=lines)]


def run_psql(workspace: Workspace, arguments: Sequence[str] = ()) -> int:
    """Run psql with the active login of the role admin, on this process's standard streams, and return its exit status.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack is not up, or its platform is not supported.
    """
    _check_running(workspace, "psql")
    logins = workspace.access.read()
    if logins is None:
        raise OperationError(f"{workspace.access.path} is missing: run `observatory up`, which writes it")
    login = logins.active_login("admin")
    connection = _connection(outputs(workspace, show_secrets=True)["database_urls"][login], workspace)
    own = {"PGAPPNAME": "observatory psql", "PSQL_HISTORY": "/dev/null"}  # statements may have prompts
    return workspace.sandbox.run_attached([PSQL, *arguments], env={**_terminal(), **connection, **own})


def run_beside(workspace: Workspace, name: str, command: Sequence[str]) -> int:
    """Run a command in the sandbox with a daemon's environment, on this process's standard streams.

    Returns its exit status.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack is not up, or its platform is not supported.
        UnknownDaemonError: there is no such daemon.
    """
    _check_running(workspace, "exec")
    units = _units(workspace)
    if name not in units:
        raise UnknownDaemonError(f"no daemon {name!r} (daemons: {', '.join(units)})")
    return workspace.sandbox.run_attached(command, env={**_terminal(), **units[name].environment})


def _connection(conninfo: str, workspace: Workspace) -> dict[str, str]:
    """Return a connection string as libpq's environment variables, with paths as the sandbox has them."""
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - only for a database session
    from psycopg.pq import Conninfo  # noqa: PLC0415

    variables = {option.keyword.decode(): option.envvar.decode() for option in Conninfo.get_defaults() if option.envvar}
    home = workspace.home.resolve()
    found = {}
    for key, value in conninfo_to_dict(conninfo).items():
        text = str(value)
        is_ours = text.startswith("/") and Path(text).resolve().is_relative_to(home)
        found[variables[key]] = str(workspace.sandbox.inside_path(Path(text))) if is_ours else text
    return found


def _units(workspace: Workspace) -> dict[str, Unit]:
    from observatory.nodes.daemons import LocalMachine, local_units  # noqa: PLC0415 - only to run a command
    from observatory.settings import LocalSettings  # noqa: PLC0415

    settings = open_platform(workspace).settings
    assert isinstance(settings, LocalSettings)  # noqa: S101 - other platforms do not support this
    rollout = workspace.rollout.read()
    if rollout is None:
        raise OperationError(f"{workspace.rollout.path} is missing: run `observatory up`, which writes it")
    machine = LocalMachine(settings=settings, rollout=rollout, stack=workspace.stack)
    return {unit.name: unit for _, unit in local_units(machine)}


def _terminal() -> Mapping[str, str]:
    return {name: os.environ[name] for name in SHELL_VARIABLES if name in os.environ}


def _check_running(workspace: Workspace, operation: Operation) -> None:
    check_supported(open_platform(workspace), operation)
    if not workspace.sandbox.alive():
        raise StackNotUpError(workspace.stack)
