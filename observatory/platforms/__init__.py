"""What operations need from a platform: one object for each platform, which only `platform_of` selects.

Only the selected platform is imported, so that a local stack never loads an AWS SDK. `local.balancer` and
`aws.balancer` set traffic weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from observatory.engines.stack_settings import load_settings
from observatory.settings import StackSettings
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.platforms.platform import Platform


def open_platform(workspace: Workspace) -> Platform:
    """Return the platform of a stack by its configuration file.

    Raises:
        SettingsError: the stack's configuration is wrong.
    """
    return platform_of(workspace, load_settings(workspace))


def platform_of(workspace: Workspace, settings: StackSettings) -> Platform:
    """Return the platform that a stack's settings name."""
    if settings.platform == "local":
        from observatory.platforms.local.platform import LocalPlatform  # noqa: PLC0415 - only the chosen platform

        return LocalPlatform(workspace=workspace, settings=settings)
    from observatory.platforms.aws.platform import AwsPlatform  # noqa: PLC0415 - only the chosen platform

    return AwsPlatform(workspace=workspace, settings=settings)
