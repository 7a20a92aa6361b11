"""What a local stack needs before its program can run: root filesystem, first release, rollout document.

Every step may be repeated and may run in several processes at once; what exists is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from observatory.documents.rollout import FleetState, RolloutDocument, StaleRolloutError
from observatory.engines import embedded as engine
from observatory.files.checkout import check_path
from observatory.files.locks import exclusive
from observatory.nodes.storage import instance_label, release_name
from observatory.platforms.errors import ReleaseBuildError
from observatory.platforms.platform import Platform
from observatory.platforms.recovered_rollout import recover_rollout
from observatory.platforms.signing import sign
from observatory.platforms.stack_state import state_options
from observatory.progress import Reporter, task
from observatory.runtime.home import check_not_moved, check_unclaimed
from observatory.settings import FLEETS, FleetName
from observatory.workspace import Workspace

MACHINE_TYPE = "pulumi-python:dynamic/local:Machine"


def prepare(platform: Platform, report: Reporter) -> None:
    """Create what is missing.

    Raises:
        HomeError: the home belongs to another stack or state, or the state to another home.
        CheckoutPathError: programs of the stack cannot use the checkout's path.
        RuntimeFault: this machine cannot run the stack.
        ReleaseBuildError: the service's artifact cannot be built.
    """
    workspace = platform.workspace
    check_path(workspace.root)
    _check_home(workspace)
    with task(report, "Debian 13 root filesystem") as show_detail:
        workspace.ensure_rootfs(progress=lambda message, _fraction: show_detail(message))
    if workspace.rollout.read() is None:
        release = f"storage service {platform.settings.first_rollout.version}"
        with task(report, release), exclusive(workspace.directory / "bootstrap.lock"):
            if workspace.rollout.read() is None:
                workspace.rollout.create(rollout_of_state(workspace) or _first_rollout(platform))
    recover_rollout(workspace.rollout, report)
    fit_stopped_fleets(workspace, platform.settings.fleets.size)


def fit_stopped_fleets(workspace: Workspace, size: int) -> None:
    """Let the rollout document name every instance of a stopped fleet, also after `fleets.size` was changed.

    A new instance of it does not run either: the balancer needs it in maintenance, so that no alert fires.
    """
    store = workspace.rollout
    current = changed = store.read()
    if current is None or changed is None or current.unfinished:
        return
    for fleet in FLEETS:
        labels = tuple(instance_label(fleet, index) for index in range(1, size + 1))
        if changed.fleet(fleet).stopped:
            changed = changed.with_fleet(fleet, stopped=labels)
    if changed != current:
        with suppress(StaleRolloutError):  # a deployment has written it meanwhile
            store.compare_and_set(current, changed)


def _check_home(workspace: Workspace) -> None:
    """Check what the machine of the stack would refuse later, before anything is written."""
    resources = engine.resources(state_options(workspace))
    for old in (each.outputs["home"] for each in resources if each.type == MACHINE_TYPE):
        check_not_moved(Path(old), workspace.home)
    if not resources and workspace.home.is_dir():
        check_unclaimed(workspace.sandbox, engine.full_name(state_options(workspace)))


def _first_rollout(platform: Platform) -> RolloutDocument:
    """Return the document of a stack that starts with its first version, which is built and signed here."""
    from service.build import BuildError, build  # noqa: PLC0415 - only for the first release

    workspace, first = platform.workspace, platform.settings.first_rollout
    try:
        built = build(first.version, workspace.root / "dist")
    except BuildError as error:
        raise ReleaseBuildError(str(error)) from error
    sign(workspace, built.path, built.manifest_path)
    if not workspace.rollout_documents:
        workspace.releases.remove(first.version)  # no stack runs it: its sources may have changed since it was built
    manifest = workspace.releases.add(built.path, built.manifest_path, platform.trusted_keys())
    return RolloutDocument.first(version=first.version, sha256=manifest.sha256, active_fleet=first.active_fleet)


def rollout_of_state(workspace: Workspace) -> RolloutDocument | None:
    """Return the rollout that the last `up` declared; None where the stack was never up."""
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
    """Return a fleet's state from the stack's outputs, with the digests of its unpacked releases.

    A rolling update that has updated all instances, or none, has ended.

    Raises:
        KeyError: no release that the outputs name is unpacked.
    """
    versions = (fleet["version"], fleet["rolling"]["version"]) if "rolling" in fleet else (fleet["version"],)
    unpacked = [
        {"version": version, "sha256": releases[resource]["sha256"]}
        for version in versions
        if (resource := release_name(name, version)) in releases
    ]
    if not unpacked:
        raise KeyError(release_name(name, fleet["version"]))
    rolling = {**fleet["rolling"], **unpacked[1]} if unpacked[1:] else None
    return FleetState.model_validate(
        {
            **unpacked[0],
            "weight": int(fleet["weight"]),
            "rolling": rolling,
            "stopped": fleet.get("stopped", ()),
        }
    )
