"""Rotating the logs of a stack."""

from __future__ import annotations

from observatory.operations.bootstrap import OperationError
from observatory.scheduling import log_rotation as logs
from observatory.settings import load_file
from observatory.workspace import Workspace


def rotate_logs(workspace: Workspace, *, force: bool = False) -> list[str]:
    """Rotate the logs that are due, all with `force`; return the names of the rotated files.

    Raises:
        OperationError: the stack is not up.
        LogRotationError: logrotate failed.
    """
    if not workspace.sandbox.alive():
        raise OperationError(f"the stack {workspace.stack!r} does not run: start it by `observatory up` first")
    return logs.rotate_logs(workspace.sandbox, load_file(workspace.config_file), force=force)
