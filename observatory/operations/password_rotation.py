"""Rotating passwords without a failed request: each role's idle login gets a new password and becomes active.

    document: the idle login is active, with its next password      →  up
    wait until no session uses the previously active login
    document: that login has its next password, which is not used   →  up

The document is written before each `up`: the next `up` continues a rotation that was killed, and the next rotation
finishes it. Both logins work until the end. The deployment lock is checked before each write.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final

from observatory.documents.logins import PAIRED_ROLES, AccessDocument, PairedRole, login, other, utc_now
from observatory.engines import embedded as engine
from observatory.files.locks import exclusive
from observatory.operations.delivery_journal import audited, record_event
from observatory.operations.deployment_lock import no_deployment_under_way
from observatory.operations.stack_up import up
from observatory.platforms import open_platform
from observatory.platforms.errors import OperationError, StackNotUpError
from observatory.platforms.platform import EngineChoice, Platform, check_supported
from observatory.platforms.stack_state import outputs, state_options
from observatory.progress import Reporter, silent, task
from observatory.waiting import poll
from observatory.workspace import Workspace

PATIENCE_S = 60.0  # for clients to leave the old login; the storage service takes 2 s, a running request 10 s
POLL_S = 0.5
COMMAND: Final = "rotate-passwords"


@dataclass(frozen=True, kw_only=True)
class RotatedRole:
    """The result of a rotation for one role: its active login, and whether the other login's password is retired."""

    role: PairedRole
    login: str
    retired: bool


def rotate_passwords(
    workspace: Workspace,
    *,
    roles: Iterable[PairedRole] = PAIRED_ROLES,
    patience_s: float = PATIENCE_S,
    choice: EngineChoice = "auto",
    report: Reporter = silent,
) -> list[RotatedRole]:
    """Give both logins of each role new passwords, one after the other.

    A login that is still used after `patience_s` seconds keeps its password; the next rotation retires that first.

    Raises:
        StackNotUpError, UnsupportedOperationError: the stack is not up, or its platform is not supported.
        LockHeldError: a deployment is under way; nothing was changed.
        LockLostError: the lock was lost, and another command holds it; run the rotation again when that has ended.
        engine.EngineError: an `up` failed; run `up` or the rotation again.
    """
    platform, roles = open_platform(workspace), tuple(roles)
    check_supported(platform, COMMAND)
    if not engine.resources(state_options(workspace)):
        raise StackNotUpError(workspace.stack)
    if workspace.access.read() is None:
        raise OperationError(f"{workspace.access.path} is missing: run `observatory up`, which writes it")
    with (
        exclusive(workspace.access.rotation_lock),
        no_deployment_under_way(platform, command=COMMAND),
        audited(workspace, "password-rotation", roles=roles),
    ):
        unswitched = [role for role in roles if not _document(workspace).pair(role).retiring]
        switched = _change(platform, unswitched, "switched")
        with task(report, f"new logins for {', '.join(roles)}"):
            up(workspace, choice=choice, report=report)
        with task(report, "wait until no client uses the old logins"):
            unused = _unused(platform, switched, roles, patience_s)
        _change(platform, unused, "retired")
        with task(report, f"retire the old passwords of {', '.join(unused) or 'no role'}"):
            up(workspace, choice=choice, report=report)
    done = _document(workspace)
    rotated = [
        RotatedRole(role=role, login=done.active_login(role), retired=not done.pair(role).retiring) for role in roles
    ]
    record_event(workspace, "passwords-rotated", roles=[asdict(each) for each in rotated])
    return rotated


def _document(workspace: Workspace) -> AccessDocument:
    document = workspace.access.read()
    if document is None:
        raise OperationError(
            f"{workspace.access.path} is missing: run `observatory up` to restore it from the stack's state"
        )
    return document


def _change(platform: Platform, roles: Iterable[PairedRole], how: str) -> AccessDocument:
    """Write the document with these roles' pairs `switched` or `retired`, under the lock, and return it."""
    with no_deployment_under_way(platform, command=COMMAND):
        workspace, now = platform.workspace, utc_now()
        document = current = _document(workspace)
        for role in roles:
            pair = document.pair(role)
            document = document.with_pair(role, pair.switched(now) if how == "switched" else pair.retired(now))
        return workspace.access.compare_and_set(current, document)


def _unused(
    platform: Platform, document: AccessDocument, roles: tuple[PairedRole, ...], patience_s: float
) -> list[PairedRole]:
    """Return the roles whose old login has no session, after waiting at most `patience_s` seconds for all of them."""
    old = {login(role, other(document.pair(role).active)): role for role in roles}
    current = outputs(platform)
    used = poll(
        lambda: platform.used_logins(current),
        until=lambda used: not used & old.keys(),
        timeout_s=patience_s,
        interval_s=POLL_S,
    )
    return [role for name, role in old.items() if name not in used]
