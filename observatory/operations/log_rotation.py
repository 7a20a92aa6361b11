"""Rotating the logs of a stack."""

from __future__ import annotations

from observatory.platforms import open_platform
from observatory.platforms.errors import StackNotUpError
from observatory.platforms.platform import check_supported
from observatory.scheduling import log_rotation as rotation
from observatory.workspace import Workspace


def rotate_logs(workspace: Workspace, *, force: bool = False) -> list[str]:
    """Rotate the logs that are due, all with `force`; return the names of the rotated files.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack is not up, or its platform is not supported.
        LogRotationError: logrotate failed.
    """
    platform = open_platform(workspace)
    check_supported(platform, "log rotation")
    if not workspace.sandbox.alive():
        raise StackNotUpError(workspace.stack)
    return rotation.rotate_logs(workspace.sandbox, platform.settings, force=force)
