"""What a stack needs before its program can run: root filesystem, passphrase, first release, rollout document.

All of it may be repeated and may run at once in several processes; what stands is kept.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from observatory.delivery.releases import ReleaseError
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
from observatory.documents.rollout import FleetState, RolloutDocument
from observatory.engines import embedded as engine
from observatory.engines.cli import automation
from observatory.engines.providers import IN_TREE
from observatory.errors import WRONG_USAGE, ObservatoryError
from observatory.files.atomic import remove_abandoned, write_once
from observatory.files.locks import exclusive
from observatory.nodes.storage import release_name
from observatory.operations.signing import sign, trusted_keys
from observatory.platforms.stores import release_store, rollout_store
from observatory.progress import Reporter, task
from observatory.settings import FLEETS, FleetName, StackSettings, load_file
from observatory.workspace import Workspace

ACCESS_TYPE = "observatory:index:Access"  # in a state: the component of `components.access`


class OperationError(ObservatoryError):
    """An operation that cannot be done here; the message names the remedy."""

    exit_code = WRONG_USAGE


class ReleaseBuildError(ObservatoryError):
    """The artifact of the reference service cannot be built; the message says what is missing."""


def bootstrap(workspace: Workspace, report: Reporter) -> StackSettings:
    """Make what is missing and return the stack's settings.

    Raises:
        SettingsError: the stack's configuration is wrong.
        OperationError: the passphrase of an existing stack is gone.
        ReleaseError: a stack elsewhere has not the releases that its machines are to install.
        observatory.runtime.RuntimeFault: the machine cannot hold the stack.
        ReleaseBuildError: the service's artifact cannot be built.
    """
    settings = load_file(workspace.config_file)
    if settings.platform != "local":
        _check_releases(workspace, settings)
    _make_passphrase(workspace)
    if settings.platform == "local":
        _make_local(workspace, settings, report)
    workspace.access.create(_access_of_state(workspace) or AccessDocument.first(utc_now()))
    engine.init(engine_options(workspace))
    return settings


def make_state(workspace: Workspace) -> None:
    """Make an empty stack with its passphrase, where there is none.

    Raises:
        OperationError: the passphrase of an existing stack is gone.
    """
    _make_passphrase(workspace)
    engine.init(engine_options(workspace))


def _make_local(workspace: Workspace, settings: StackSettings, report: Reporter) -> None:
    with task(report, "Debian 13 root filesystem") as at:
        workspace.ensure_rootfs(progress=lambda message, _fraction: at(message))
    release = f"storage service {settings.first_rollout.version}"
    with task(report, release), exclusive(workspace.directory / "bootstrap.lock"):
        _make_rollout(workspace, settings)


def _check_releases(workspace: Workspace, settings: StackSettings) -> None:
    """Find what machines elsewhere would wait for in vain, before any is made: the releases that they install.

    Raises:
        ReleaseError: one is not kept, or is another one than the fleets are to run.
    """
    current, first = rollout_store(workspace, settings).read(), settings.first_rollout
    wanted = (current.blue, current.green) if current else (first,)
    store = release_store(workspace, settings)
    for state in wanted:
        if (kept := store.manifest(state.version).sha256) != state.sha256:
            raise ReleaseError(
                f"a fleet is to run {state.version} with SHA-256 {state.sha256}, and the release that is kept has "
                f"{kept}: add the right one, or correct first_rollout before the first `up`"
            )


def engine_options(workspace: Workspace) -> engine.StackOptions:
    """Return what either engine needs to know of a stack.

    Raises:
        OperationError: there is no passphrase.
        SettingsError: the stack's configuration is wrong.
    """
    try:
        passphrase = workspace.passphrase_file.read_text()
    except FileNotFoundError:
        raise OperationError(_no_passphrase(workspace)) from None
    return replace(_options(workspace, passphrase), plugins=load_file(workspace.config_file).platform != "local")


def state_options(workspace: Workspace) -> engine.StackOptions:
    """Return what is needed to look at a stack's state, without its secrets."""
    return _options(workspace, "")


def _options(workspace: Workspace, passphrase: str) -> engine.StackOptions:
    return engine.StackOptions(
        cwd=workspace.root,
        stack=workspace.stack,
        backend=workspace.backend,
        passphrase=passphrase,
        packages=IN_TREE,
    )


def _no_passphrase(workspace: Workspace) -> str:
    if not engine.exists(state_options(workspace)):
        return f"the stack {workspace.stack!r} does not exist yet; `observatory up` makes it"
    return (
        f"{workspace.passphrase_file} is gone, and the secrets in the stack's state can be read with it alone: put it "
        "back from a copy, or remove the stack with all its data by `observatory down`"
    )


def _make_passphrase(workspace: Workspace) -> None:
    """Draw the passphrase once; it is never replaced while there is a state whose secrets depend on it."""
    file = workspace.passphrase_file
    remove_abandoned(file.parent)
    if file.exists():
        return
    if engine.exists(state_options(workspace)):
        raise OperationError(_no_passphrase(workspace))
    if write_once(file, lambda: secrets.token_urlsafe(32)):
        automation.forget_salt(workspace.config_file)  # an earlier passphrase's would refuse this one


def _make_rollout(workspace: Workspace, settings: StackSettings) -> None:
    """Write the rollout document where there is none: by the state of a stack that runs, else the first one."""
    if workspace.rollout.read() is None:
        workspace.rollout.create(rollout_of_state(workspace) or _first_rollout(workspace, settings))


def _first_rollout(workspace: Workspace, settings: StackSettings) -> RolloutDocument:
    """Return the document of a stack that starts with its first version, built and signed here."""
    from service.build import BuildError, build  # noqa: PLC0415 - only where something is built

    first = settings.first_rollout
    try:
        built = build(first.version, workspace.root / "dist")
    except BuildError as error:
        raise ReleaseBuildError(str(error)) from error
    sign(workspace, built.path, built.manifest_path)
    if not workspace.rollout_documents:
        workspace.releases.remove(first.version)  # no stack has it: sources that changed since may build it anew
    manifest = workspace.releases.add(built.path, built.manifest_path, trusted_keys(workspace, settings))
    return RolloutDocument.first(version=first.version, sha256=manifest.sha256, active_fleet=first.active_fleet)


def rollout_of_state(workspace: Workspace) -> RolloutDocument | None:
    """Return what the last `up` declared, or None where nothing was ever up."""
    options = state_options(workspace)
    if not engine.exists(options):
        return None
    releases = {record.name: record.outputs for record in engine.resources(options)}
    fleets = engine.outputs(options).get("fleets")
    if not fleets:
        return None
    try:
        states = {name: fleet_of_state(name, fleets[name], releases) for name in FLEETS}
    except KeyError:  # a release is not unpacked yet
        return None
    return RolloutDocument(blue=states["blue"], green=states["green"])


def fleet_of_state(name: FleetName, fleet: Mapping[str, Any], releases: Mapping[str, Mapping[str, Any]]) -> FleetState:
    """Return a fleet as the outputs tell it, with the digests of the releases that its instances run.

    A rolling update that has moved every instance, or none, is no more in the middle.

    Raises:
        KeyError: no release that the outputs name is unpacked.
    """
    versions = (fleet["version"], fleet["rolling"]["version"]) if "rolling" in fleet else (fleet["version"],)
    run = [
        {"version": version, "sha256": releases[resource]["sha256"]}
        for version in versions
        if (resource := release_name(name, version)) in releases
    ]
    if not run:
        raise KeyError(release_name(name, fleet["version"]))
    rolling = {**fleet["rolling"], **run[1]} if run[1:] else None
    return FleetState.model_validate({**run[0], "weight": int(fleet["weight"]), "rolling": rolling})


def _access_of_state(workspace: Workspace) -> AccessDocument | None:
    """Return the logins as the last `up` declared them, for a document that was lost; their age begins anew."""
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
