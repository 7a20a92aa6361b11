"""Declaring a stack on its platform. Only that platform's modules are imported: an SDK takes a second."""

from __future__ import annotations

from typing import Any

from observatory.documents.logins import AccessDocument, utc_now
from observatory.documents.rollout import RolloutDocument
from observatory.settings import AwsSettings, LocalSettings, StackSettings
from observatory.workspace import Workspace


def declare(workspace: Workspace, settings: StackSettings, rollout: RolloutDocument) -> dict[str, Any]:
    """Declare a stack on its platform and return its outputs, whose names are the same on every platform."""
    logins = workspace.access.read() or AccessDocument.first(utc_now())
    if settings.platform == "local":
        return _on_local(workspace, settings, rollout, logins)
    return _on_aws(workspace, settings, rollout, logins)


def _on_aws(
    workspace: Workspace, settings: AwsSettings, rollout: RolloutDocument, logins: AccessDocument
) -> dict[str, Any]:
    from components.aws.stack import AwsArgs, declare  # noqa: PLC0415

    return declare(
        AwsArgs(
            stack=workspace.stack,
            settings=settings,
            rollout=rollout,
            logins=logins,
            home=workspace.home,
            migrations=workspace.migrations,
        )
    )


def _on_local(
    workspace: Workspace, settings: LocalSettings, rollout: RolloutDocument, logins: AccessDocument
) -> dict[str, Any]:
    from components.local.stack import LocalArgs, declare  # noqa: PLC0415

    return declare(
        LocalArgs(
            settings=settings,
            rollout=rollout,
            document=workspace.rollout.path,
            logins=logins,
            home=workspace.home,
            rootfs=workspace.rootfs,
            releases=workspace.releases,
            migrations=workspace.migrations,
            root=workspace.root,
        )
    )
