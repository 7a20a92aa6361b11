"""What a stack needs before its program can run: passphrase, logins, state, and what its platform adds.

Every step may be repeated and may run in several processes at once; what exists is kept.
"""

from __future__ import annotations

import secrets

from observatory.documents.logins import (
    PAIRED_ROLES,
    SIDES,
    AccessDocument,
    LoginState,
    Pair,
    PairedRole,
    Side,
    login,
    utc_now,
)
from observatory.engines import embedded as engine
from observatory.engines.cli import automation
from observatory.files.atomic import remove_abandoned, write_once
from observatory.platforms import open_platform
from observatory.platforms.stack_state import engine_options, missing_passphrase, state_options
from observatory.progress import Reporter, silent
from observatory.workspace import Workspace

ACCESS_TYPE = "observatory:index:Access"  # in a state: the component of `components.access`


def bootstrap(workspace: Workspace, *, report: Reporter = silent) -> None:
    """Create what is missing.

    Raises:
        SettingsError: the stack's configuration is wrong.
        OperationError: the passphrase of an existing stack is missing.
        ReleaseError: a release that the fleets run is not in the store, or has another digest.
        RuntimeFault: this machine cannot run the stack.
        ReleaseBuildError: the service's artifact cannot be built.
    """
    platform = open_platform(workspace)
    _check_passphrase(workspace)
    automation.remove_unused_salt(state_options(workspace))
    platform.prepare(report)
    _make_passphrase(workspace)
    workspace.access.create(_access_of_state(workspace) or AccessDocument.first(utc_now()))
    engine.init(engine_options(platform))


def _check_passphrase(workspace: Workspace) -> None:
    if not workspace.passphrase_file.exists() and engine.exists(state_options(workspace)):
        raise missing_passphrase(workspace)


def _make_passphrase(workspace: Workspace) -> None:
    """Generate the passphrase once; it is never replaced while a state has secrets that depend on it."""
    remove_abandoned(workspace.passphrase_file.parent)
    _check_passphrase(workspace)
    if write_once(workspace.passphrase_file, lambda: secrets.token_urlsafe(32)):
        automation.remove_salt(workspace.config_file)  # the salt belongs to an earlier passphrase


def _access_of_state(workspace: Workspace) -> AccessDocument | None:
    """Return the logins that the last `up` declared, to restore a lost document; their age starts again."""
    options = state_options(workspace)
    records = engine.resources(options) if engine.exists(options) else ()
    generations = {r.name: int(r.outputs["generation"]) for r in records if r.type.endswith(":LoginPassword")}
    active = next((r.outputs["active"] for r in records if r.type == ACCESS_TYPE and "active" in r.outputs), None)
    if active is None or any(login(role, side) not in generations for role in PAIRED_ROLES for side in SIDES):
        return None
    now = utc_now()

    def state(role: PairedRole, side: Side) -> LoginState:
        return LoginState(generation=generations[login(role, side)], since=now)

    return AccessDocument(
        **{role: Pair(active=active[role], a=state(role, "a"), b=state(role, "b")) for role in PAIRED_ROLES}
    )
