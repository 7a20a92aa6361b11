"""Whether a version may be deployed now, by the stack's windows and the approvals of other people."""

from __future__ import annotations

import time

from observatory.delivery.approvals import Approval, change_between, check_permitted
from observatory.delivery.releases import Manifest
from observatory.documents.rollout import RolloutDocument
from observatory.platforms import open_platform
from observatory.platforms.platform import Platform
from observatory.security.actor import actor
from observatory.workspace import Workspace


def approve_release(workspace: Workspace, version: str, *, reason: str) -> Approval:
    """Approve a stored release for deployment on the stack; the approver cannot deploy it.

    Raises:
        ReleaseError: the release is not stored, is damaged, or no trusted key signed it.
    """
    platform = open_platform(workspace)
    manifest = platform.release_store.checked(version, platform.trusted_keys())
    approval = Approval(version=version, sha256=manifest.sha256, by=actor(), at=time.time(), reason=reason)
    platform.approval_store.write(approval)
    return approval


def check_permission(platform: Platform, manifest: Manifest, *, approved_by: str | None = None) -> str | None:
    """Check that a version may be deployed now; return its approver, None where there is none.

    A killed deployment of the same version may continue at any time: leaving it unfinished is worse.

    Raises:
        NotPermittedError: no window is open, or an approval is missing.
        ReleaseError: the record of its approval is damaged.
    """
    recorded = platform.approval_store.read(manifest)
    approver = approved_by or (recorded.by if recorded else None)
    current = platform.rollout_store.read()
    if current and not _continues(current, manifest):
        delivery = platform.settings.delivery
        check_permitted(
            change_between(current.fleet(current.active_fleet).version, manifest.version),
            version=manifest.version,
            windows=delivery.windows,
            approval=delivery.approval,
            approver=approver,
            actor=actor(),
        )
    return approver


def _continues(current: RolloutDocument, manifest: Manifest) -> bool:
    deployment = current.deployment
    return deployment is not None and not deployment.ended and deployment.sha256 == manifest.sha256
