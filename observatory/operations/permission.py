"""Whether a version may be deployed now: the stack's windows, and the approvals that other people gave."""

from __future__ import annotations

import time

from observatory.delivery.approvals import Approval, change_between, check_permitted
from observatory.delivery.releases import Manifest
from observatory.documents.rollout import RolloutDocument
from observatory.operations.signing import trusted_keys
from observatory.platforms.stores import approval_store, release_store, rollout_store
from observatory.security.actor import actor
from observatory.settings import StackSettings, load_file
from observatory.workspace import Workspace


def approve_release(workspace: Workspace, version: str, *, reason: str) -> Approval:
    """Say that a kept release may be deployed on the stack; whoever says so cannot be the one who deploys it.

    Raises:
        ReleaseError: it is not kept, not whole, or not signed by anybody trusted.
    """
    settings = load_file(workspace.config_file)
    manifest = release_store(workspace, settings).checked(version, trusted_keys(workspace, settings))
    approval = Approval(version=version, sha256=manifest.sha256, by=actor(), at=time.time(), reason=reason)
    approval_store(workspace, settings).write(approval)
    return approval


def permission(
    workspace: Workspace, settings: StackSettings, manifest: Manifest, *, approved_by: str | None = None
) -> str | None:
    """Check that a version may be deployed now; return who approved it, if somebody did.

    A deployment of it that was killed may go on at any hour: what is half done is worse.

    Raises:
        NotPermittedError: it may not.
        ReleaseError: the record of its approval is damaged.
    """
    kept = approval_store(workspace, settings).read(manifest)
    approver = approved_by or (kept.by if kept else None)
    current = rollout_store(workspace, settings).read()
    if current and not _goes_on(current, manifest):
        check_permitted(
            change_between(current.fleet(current.active_fleet).version, manifest.version),
            version=manifest.version,
            windows=settings.delivery.windows,
            approval=settings.delivery.approval,
            approver=approver,
            actor=actor(),
        )
    return approver


def _goes_on(current: RolloutDocument, manifest: Manifest) -> bool:
    deployment = current.deployment
    return deployment is not None and not deployment.ended and deployment.sha256 == manifest.sha256
