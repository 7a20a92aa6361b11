"""The Pulumi program: declares the selected stack and exports its outputs."""

from pathlib import Path

import pulumi

from components.platforms import declare
from observatory.documents.rollout import RolloutDocument
from observatory.engines.embedded.offline import offline_plan
from observatory.errors import ObservatoryError
from observatory.platforms import platform_of
from observatory.settings import StackSettings, load_program
from observatory.workspace import Workspace

REMOVAL_BEGUN = (
    "the data of the stack {stack!r} was removed, but `observatory down` was interrupted before it finished: run "
    "`observatory down` to finish, or `observatory up` to finish and create the stack again"
)
NOT_PREPARED = (
    "the stack {stack!r} has no {what} yet, and `pulumi` builds none: run `observatory bootstrap -e {stack}` first "
    "(.venv/bin/observatory; `make up` does both)"
)
NOT_BUILT = "0" * 64


def live_or_first(workspace: Workspace, settings: StackSettings) -> RolloutDocument:
    """Return the rollout document, or the first one of the settings; an offline plan reads no other machine's."""
    platform = platform_of(workspace, settings)
    unreachable = offline_plan.get() and platform.needs_plugins
    live = None if unreachable else platform.rollout_store.read()
    if live:
        return live
    first = settings.first_rollout
    if pulumi.runtime.is_dry_run():
        pulumi.info("weights and versions: first values from settings, since no rollout document was read")
    return RolloutDocument.first(
        version=first.version,
        sha256=first.sha256 or digest(workspace, first.version),
        active_fleet=first.active_fleet,
    )


def digest(workspace: Workspace, version: str) -> str:
    """Return the digest of a release; a plan does not need the release to be built."""
    if pulumi.runtime.is_dry_run() and version not in workspace.releases.versions():
        pulumi.info(f"release {version} is not built yet: its digest is shown as {NOT_BUILT}")
        return NOT_BUILT
    return workspace.releases.manifest(version).sha256


def check_prepared(workspace: Workspace, settings: StackSettings) -> None:
    """Check that a local stack has what `observatory bootstrap` builds; a plan needs none of it."""
    if pulumi.runtime.is_dry_run() or settings.platform != "local":
        return
    missing = {"root filesystem": not workspace.rootfs.exists(), "release": not workspace.releases.versions()}
    if what := " and no ".join(name for name, is_missing in missing.items() if is_missing):
        raise pulumi.RunError(NOT_PREPARED.format(stack=workspace.stack, what=what))


def main() -> None:
    """Declare the stack; a user's error is printed without a traceback."""
    try:
        declare_stack()
    except ObservatoryError as error:
        raise pulumi.RunError(str(error)) from error


def declare_stack() -> None:
    """Declare the selected stack and export its outputs."""
    settings = load_program()
    workspace = Workspace(root=Path(__file__).resolve().parent, stack=pulumi.get_stack())
    if workspace.discarded:
        raise pulumi.RunError(REMOVAL_BEGUN.format(stack=workspace.stack))
    check_prepared(workspace, settings)
    for name, value in declare(workspace, settings, live_or_first(workspace, settings)).items():
        pulumi.export(name, value)


main()
