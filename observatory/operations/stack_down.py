"""Stopping and removing a stack."""

from __future__ import annotations

from observatory.engines import embedded as engine
from observatory.engines.cli import automation
from observatory.operations.engine_progress import report_steps
from observatory.operations.lost_machine import keep_keys
from observatory.platforms import open_platform
from observatory.platforms.engine_choice import choose_engine_to_change, engine_of
from observatory.platforms.platform import EngineChoice, EngineName, Platform, check_supported
from observatory.platforms.stack_state import engine_options, outputs, state_options
from observatory.progress import Phase, Progress, Reporter, silent, tell
from observatory.runtime import mounts
from observatory.workspace import Workspace


def down(
    workspace: Workspace, *, keep_data: bool = False, choice: EngineChoice = "auto", report: Reporter = silent
) -> None:
    """Stop the stack; without `keep_data` remove its data and state, too.

    Holds the stack's lock while it stops. Until every daemon has stopped, `up` restores the stack with its data. Then
    one rename removes the data; after that the next `down` or `up` finishes an interrupted removal.
    A local stack is removed without its passphrase, too. Backup repositories outside of its home stay, and their keys
    are kept in a file of the checkout.

    Raises:
        NeedsCliError: the embedded engine cannot run this stack.
        UnsupportedOperationError: the platform cannot keep the data; nothing was changed.
        engine.LockedError: a run is under way.
        engine.EngineError: the state cannot be read, or a resource cannot be deleted.
    """
    platform = open_platform(workspace)
    chosen = choose_engine_to_change(platform, choice, operation="down")
    if keep_data:
        check_supported(platform, "down --keep-data")
    else:
        _check_state(platform)
    outside = {} if keep_data else mounts.recorded(workspace.home)
    kept = keep_keys(workspace) if outside else None
    with report_steps(report, "down") as on_event:
        platform.stop(
            lambda: engine.locked(state_options(workspace), on_event=on_event), keep_data=keep_data, report=report
        )
    if not keep_data:
        finish_removal(platform, chosen, report)
    if kept:
        places = " and ".join(map(str, outside.values()))
        tell(report, Progress(task=f"the backups in {places} stay, and {kept} has their keys", phase=Phase.WARNED))


def _check_state(platform: Platform) -> None:
    """Check that the state can be read, before any data is removed."""
    if platform.workspace.passphrase_file.exists() and engine.exists(state_options(platform.workspace)):
        outputs(platform, show_secrets=True)


def finish_removal(platform: Platform, chosen: EngineName, report: Reporter) -> None:
    """Remove what a stopped stack still has; caches and other stacks' files stay.

    Raises:
        engine.EngineError: the state cannot be read, or a resource cannot be deleted.
    """

    def destroy() -> None:
        with report_steps(report, "down") as on_event:
            automation.end_killed_run(engine_options(platform), on_event)
            engine_of(chosen).destroy(engine_options(platform), on_event=on_event)

    platform.remove(destroy, report)
