"""Permission to deploy a version now, by the stack's windows and approvals."""

from __future__ import annotations

import time
from pathlib import Path

from observatory.delivery.approvals import Approval, change_between, check_permitted
from observatory.delivery.releases import Manifest, ReleaseError, ReleaseRefusedError
from observatory.documents.rollout import RolloutDocument
from observatory.operations.delivery_journal import open_journal
from observatory.platforms import open_platform
from observatory.platforms.platform import Platform
from observatory.progress import silent
from observatory.security.actor import actor, user
from observatory.security.signatures import SignatureError, key_id, public_key
from observatory.workspace import Workspace

VALID_DAYS = 7
_DAY_S = 86_400


def approve_release(
    workspace: Workspace, version: str, *, key: Path, reason: str, valid_days: float = VALID_DAYS
) -> Approval:
    """Approve a stored release for deployment on the stack; the approver cannot deploy it.

    Args:
        workspace: of the stack.
        version: of the release.
        key: file with the approver's private key, whose public key is in `delivery.trusted_approvers`.
        reason: for the record.
        valid_days: days until the approval ends.

    Raises:
        ReleaseError: the release is not stored, is damaged, or no trusted key signed it; or the key cannot be used.
        ReleaseRefusedError: the key is not of a trusted approver.
    """
    platform = open_platform(workspace)
    manifest = platform.release_store.checked(version, platform.trusted_keys())
    private_key, now = _private_key(key), time.time()
    approval = Approval(
        version=version,
        sha256=manifest.sha256,
        by=_holder(platform, key, private_key),
        at=now,
        reason=reason,
        stack=workspace.stack,
        user=user(),
        expires=now + valid_days * _DAY_S,
    ).signed(private_key)
    platform.approval_store.write(approval)
    with open_journal(platform, silent) as journal:
        journal.record("approved", version=version, sha256=manifest.sha256, by=approval.by, expires=approval.expires)
    return approval


def check_permission(platform: Platform, manifest: Manifest, *, window_checked: bool = False) -> str | None:
    """Check that a version may be deployed now; return its approver, None where there is none.

    A killed deployment of the same version may continue at any time, and a workflow that has checked the window at its
    start after that has closed (`window_checked`): leaving it unfinished is worse.

    Raises:
        NotPermittedError: no window is open, or an approval is missing.
        ReleaseError: the record of its approval is damaged.
    """
    delivery, recorded = platform.settings.delivery, platform.approval_store.read(manifest)
    objection: str | None = "it is not approved: a second person must run `observatory release approve`"
    if not delivery.trusted_approvers:
        objection = "it can never be approved: add an approver's public key to `delivery.trusted_approvers`"
    if recorded:
        objection = recorded.objection(
            manifest, stack=platform.workspace.stack, approvers=delivery.trusted_approvers, deployer=actor()
        )
    current = platform.rollout_store.read()
    if current and not _continues(current, manifest):
        check_permitted(
            change_between(current.fleet(current.active_fleet).version, manifest.version),
            version=manifest.version,
            windows=() if window_checked else delivery.windows,
            approval=delivery.approval,
            objection=objection,
        )
    return recorded.by if recorded and objection is None else None


def _private_key(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not a text"
        raise ReleaseError(f"{file}: the approver's key cannot be read: {why}") from error


def _holder(platform: Platform, file: Path, private_key: str) -> str:
    """Return the name of the trusted approver who holds a key."""
    try:
        public = public_key(private_key)
    except SignatureError as error:
        raise ReleaseError(f"{file}: {error}") from error
    approvers = platform.settings.delivery.trusted_approvers
    for name, known in approvers.items():
        if known == public:
            return name
    raise ReleaseRefusedError(
        f"{file}: key {key_id(public)} is not of a trusted approver (trusted: {', '.join(approvers) or 'none'}): add "
        "its public key to the setting `delivery.trusted_approvers` under its holder's user name"
    )


def _continues(current: RolloutDocument, manifest: Manifest) -> bool:
    deployment = current.deployment
    return deployment is not None and not deployment.ended and deployment.sha256 == manifest.sha256
