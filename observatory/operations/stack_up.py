"""Bringing a stack up."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

from observatory.database.errors import LockHeldError
from observatory.engines import embedded as engine
from observatory.engines.cli import automation
from observatory.engines.embedded import Result
from observatory.engines.providers.plugin import missing_plugins
from observatory.operations.database_exchange import end_agreed, finish_interrupted
from observatory.operations.demonstration import Demonstration, demonstrate
from observatory.operations.deployment_lock import no_deployment_under_way
from observatory.operations.dropped_database import check_name, check_not_dropped
from observatory.operations.engine_progress import report_steps
from observatory.operations.stack_bootstrap import bootstrap
from observatory.operations.stack_down import finish_removal
from observatory.operations.stack_status import Status, settled_status
from observatory.platforms import open_platform
from observatory.platforms.engine_choice import choose_engine_to_change, engine_of
from observatory.platforms.platform import EngineChoice, EngineName, Platform
from observatory.platforms.stack_state import engine_options, outputs, state_options
from observatory.progress import Phase, Progress, Reporter, silent, task, tell
from observatory.settings import check_secret_files
from observatory.workspace import Workspace

UNCHANGED = ("same", "refresh", "read")


@dataclass(frozen=True, kw_only=True)
class UpResult:
    """The result of an `up`.

    Attributes:
        engine: the engine that ran.
        result: its steps and the stack's outputs.
        status: of the stack; None where the platform has no status.
        demonstration: of a new stack; None where it was shown before, or the platform has no status.
    """

    engine: EngineName
    result: Result
    status: Status | None
    demonstration: Demonstration | None


def up(workspace: Workspace, *, choice: EngineChoice = "auto", report: Reporter = silent) -> UpResult:
    """Bring the stack to what the program declares, and send traces through a new one.

    First finishes a `down` that was interrupted after it had removed the data.

    Raises:
        SettingsError: the stack's configuration is wrong, or a file of a secret that it names is missing.
        NeedsCliError: the embedded engine cannot run this stack.
        LockHeldError: there is something to change while a deployment is under way; nothing was changed.
        DatabaseDroppedError: the stack's database is gone from its server, or empty.
        OperationError: the settings have another name for the database than the stack.
        ReleaseError, RuntimeFault, ReleaseBuildError: see `bootstrap`.
        engine.EngineError: a step failed; `result` on the error has what succeeded.
        DemonstrationError: the new stack does not store or return traces.
    """
    platform = open_platform(workspace)
    check_secret_files(workspace.config_file, platform.settings)
    chosen = choose_engine_to_change(platform, choice, operation="up")
    if workspace.discarded:
        finish_removal(platform, chosen, report)
    bootstrap(workspace, report=report)
    if chosen == "cli":
        _report_in_tree_providers(report)
    _report_homes_without_state(workspace, report)
    with ExitStack() as lock:
        try:
            lock.enter_context(no_deployment_under_way(platform, command="up"))
        except LockHeldError as held:
            result = _nothing_to_change(platform, chosen, held)
        else:
            result = _up(platform, chosen, report)
    if platform.unsupported("status"):
        return UpResult(engine=chosen, result=result, status=None, demonstration=None)
    settled = settled_status(workspace)
    shown = None if workspace.demonstrated.exists() else _demonstrate(platform, report)
    return UpResult(engine=chosen, result=result, status=settled, demonstration=shown)


def _nothing_to_change(platform: Platform, chosen: EngineName, held: LockHeldError) -> Result:
    """Return the plan if it changes nothing: that needs no lock; otherwise raise `held`."""
    plan = engine_of(chosen).preview(engine_options(platform))
    if any(step.operation not in UNCHANGED for step in plan.steps):
        raise held
    return plan


def _up(platform: Platform, chosen: EngineName, report: Reporter) -> Result:
    check_name(platform)
    rolls_back = not platform.unsupported("rollback --method database")
    if rolls_back:
        finish_interrupted(platform, report)
        check_not_dropped(platform)
    platform.before_up(report)
    with report_steps(report, "up") as on_event:
        automation.end_killed_run(engine_options(platform), on_event)
        try:
            result = engine_of(chosen).up(engine_options(platform), on_event=on_event)
        except engine.EngineError:
            check_not_dropped(platform)  # which explains what failed for the lack of it
            raise
    check_not_dropped(platform)  # on a server that did not run before
    if rolls_back:
        end_agreed(platform)
    return result


def _report_in_tree_providers(report: Reporter) -> None:
    for package in missing_plugins():
        with task(report, f"pulumi_{package} is served in-tree: its plugin is not installed"):
            pass


def _report_homes_without_state(workspace: Workspace, report: Reporter) -> None:
    """Report the homes that `pulumi stack rm` left: they have data, so that only `down` removes them."""
    for home in sorted(workspace.home.parent.glob("[!.]*/")):
        if home.name != workspace.stack and not engine.exists(replace(state_options(workspace), stack=home.name)):
            text = f"no state has the stack {home.name}: `observatory down -e {home.name}` removes its data"
            tell(report, Progress(task=text, phase=Phase.WARNED))


def _demonstrate(platform: Platform, report: Reporter) -> Demonstration:
    current = outputs(platform, show_secrets=True)
    with task(report, "write 1000 traces through the balancer and read them"):
        shown = demonstrate(current["service_url"], current["api_key"], ca_file=current["ca_file"])
    platform.workspace.demonstrated.touch()  # only now: an interrupted demonstration runs again
    return shown
