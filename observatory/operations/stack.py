"""Bringing a stack up, looking at it, and taking it down."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

from observatory.database.errors import LockHeldError
from observatory.documents.journal import Entry, last_entry
from observatory.documents.rollout import RolloutDocument
from observatory.engines import embedded as engine
from observatory.engines.cli import automation
from observatory.engines.embedded import Result
from observatory.engines.providers.plugin import missing
from observatory.operations.bootstrap import OperationError, bootstrap, engine_options, rollout_of_state, state_options
from observatory.operations.demonstration import Demonstration, demonstrate
from observatory.operations.engine_choice import EngineChoice, engine_for, module_of
from observatory.operations.locks import no_deployment_meanwhile
from observatory.operations.logins import PasswordStatus, mend_logins, password_statuses
from observatory.operations.scheduler import JobStatus, jobs
from observatory.operations.state import outputs
from observatory.platforms.local.status import DaemonStatus, daemon_statuses
from observatory.progress import Phase, Progress, Reporter, silent, task
from observatory.runtime import check_ports
from observatory.scheduling.scheduler_process import scheduler_pid, stop_scheduler
from observatory.settings import LocalSettings, StackSettings, load_file
from observatory.workspace import Workspace

SETTLE_S = 30.0
UNTOUCHED = ("same", "refresh", "read")
COMPONENTS = ("observatory:", "pulumi:")  # what is no resource of its own
PHASES = {"started": Phase.STARTED, "done": Phase.DONE, "failed": Phase.FAILED}


@dataclass(frozen=True, kw_only=True)
class UpResult:
    """What `up` did: the engine that ran, its result and, on this machine, what runs now and the first traces."""

    engine: Literal["cli", "embedded"]
    result: Result
    status: Status | None
    demonstration: Demonstration | None


@dataclass(frozen=True, kw_only=True)
class Status:
    """What runs on a stack, by the living thing; `rollout` is None where nothing was ever deployed.

    `evaluation` is the gate's last evaluation of the deployment that is under way, or of the last one.
    """

    daemons: list[DaemonStatus]
    rollout: RolloutDocument | None
    schema_version: int | None
    fleet_size: int
    jobs: list[JobStatus]
    passwords: list[PasswordStatus]
    evaluation: Entry | None = None

    @property
    def healthy(self) -> bool:
        """Whether every daemon is there and ready."""
        return bool(self.daemons) and all(daemon.health == "ready" for daemon in self.daemons)


def up(workspace: Workspace, *, choice: EngineChoice = "auto", report: Reporter = silent) -> UpResult:
    """Bring the stack to what the program declares, and show with real traces that a new one works.

    A `down` that was interrupted after it had given the data up is finished first.

    Raises:
        NeedsCliError: the embedded engine cannot run this stack.
        LockHeldError: there is something to change while a deployment is under way; nothing was changed.
        engine.EngineError: what failed, with what had succeeded until then in its `result`.
        DemonstrationError: the new stack does not store or give back traces.
    """
    chosen = engine_for(workspace, load_file(workspace.config_file), choice, operation="up")
    if workspace.discarded:
        _finish_removal(workspace, chosen, report)
    settings = bootstrap(workspace, report)
    if chosen == "cli":
        _tell_what_is_in_tree(report)
    with ExitStack() as alone:
        try:
            alone.enter_context(no_deployment_meanwhile(workspace))
        except LockHeldError as held:
            result = _nothing_to_do(workspace, chosen, held)
        else:
            result = _up(workspace, settings, chosen, report)
    if settings.platform != "local":
        return UpResult(engine=chosen, result=result, status=None, demonstration=None)
    settled = settled_status(workspace)
    shown = None if workspace.demonstrated.exists() else _show(workspace, report)
    return UpResult(engine=chosen, result=result, status=settled, demonstration=shown)


def _nothing_to_do(workspace: Workspace, chosen: Literal["cli", "embedded"], held: LockHeldError) -> Result:
    """Return the plan where it changes nothing, which no deployment need keep anybody from."""
    plan: Result = module_of(chosen).preview(engine_options(workspace))
    if any(step.operation not in UNTOUCHED for step in plan.steps):
        raise held
    return plan


def _up(workspace: Workspace, settings: StackSettings, chosen: Literal["cli", "embedded"], report: Reporter) -> Result:
    if settings.platform == "local":
        _check_ports(workspace, settings)
        mend_logins(workspace, settings, report)
    with _steps_to(report, "up") as on_event:
        automation.take_over(engine_options(workspace), on_event)
        result: Result = module_of(chosen).up(engine_options(workspace), on_event=on_event)
    return result


def _tell_what_is_in_tree(report: Reporter) -> None:
    for package in missing():
        with task(report, f"pulumi_{package} is served in-tree: its plugin is not installed"):
            pass


def settled_status(workspace: Workspace) -> Status:
    """Return the status as soon as every daemon is ready, at most half a minute later.

    One may still notice that another was restarted.
    """
    deadline = time.monotonic() + SETTLE_S
    while not (found := status(workspace)).healthy and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _check_ports(workspace: Workspace, settings: LocalSettings) -> None:
    """Refuse before anything changes, rather than let a daemon fail to bind."""
    ports = {f"ports.{name}": port for name, port in settings.named_ports()}
    scheduler = scheduler_pid(workspace.sandbox)
    check_ports(ports, ours=[*workspace.sandbox.members(), *([scheduler] if scheduler else [])])


def _show(workspace: Workspace, report: Reporter) -> Demonstration:
    values = outputs(workspace, show_secrets=True)
    with task(report, "a thousand traces through the balancer, and back"):
        shown = demonstrate(values["service_url"], values["api_key"], ca_file=values["ca_file"])
    workspace.demonstrated.touch()  # only now: an interrupted demonstration is made again
    return shown


@contextmanager
def _steps_to(report: Reporter, command: str) -> Iterator[engine.OnEvent]:
    """Tell of every step on a real resource; components are made of those and take no time of their own.

    Where the run is interrupted, its error says what is done, what is broken off, and what to run next.
    """
    done: list[str] = []
    begun: dict[str, None] = {}

    def on_event(event: engine.Event) -> None:
        if isinstance(event, engine.DiagnosticEvent):
            _warn(report, event)
        elif event.step.operation not in ("same", "refresh") and not event.step.type.startswith(COMPONENTS):
            name = f"{event.step.operation} {event.step.type.rpartition(':')[2]} {event.step.name}"
            begun.pop(name, None)
            if event.status == "started":
                begun[name] = None
            elif event.status == "done":
                done.append(name)
            report(Progress(task=name, phase=PHASES[event.status], seconds=event.step.seconds))

    try:
        yield on_event
    except engine.Interrupted as error:
        error.args = (_account(str(error), done, list(begun), command),)
        raise


def _warn(report: Reporter, event: engine.DiagnosticEvent) -> None:
    """Pass a warning on, with the resource that it is about; what is only informative is left out."""
    if event.severity in ("warning", "error"):
        about = f"{event.urn.rpartition('::')[2]}: " if event.urn else ""
        report(Progress(task=about + event.message, phase=Phase.WARNED))


def _account(reason: str, done: list[str], begun: list[str], command: str) -> str:
    lines = [reason, f"done: {len(done)} steps, the last {done[-1]}" if done else "done: nothing yet"]
    lines += [f"broken off: {', '.join(begun)}"] if begun else []
    again = f"next: `observatory {command}` goes on from here"
    return "\n  ".join([*lines, again + ("; `observatory down` removes what there is" if command == "up" else "")])


def down(
    workspace: Workspace, *, keep_data: bool = False, choice: EngineChoice = "auto", report: Reporter = silent
) -> None:
    """Stop the stack. With `keep_data` all else stays, for the next `up`; without, data and state go too.

    Both hold the stack's lock while they stop. Until every daemon has stopped, `up` takes all of it back; then the data
    is given up in one step, and from there on what is interrupted is finished by the next `down` or `up`.
    Works without the passphrase: then only what is on this machine is removed, which is all that `local` has.

    Raises:
        NeedsCliError: the embedded engine cannot run this stack.
        engine.LockedError: a run is under way.
        engine.EngineError: the state cannot be read, or a resource not be deleted.
    """
    settings = load_file(workspace.config_file)
    chosen = engine_for(workspace, settings, choice, operation="down")
    if settings.platform != "local":
        _destroy(workspace, chosen, report)
        return
    if not keep_data:
        _check_state(workspace)
    if workspace.home.exists():
        with task(report, "stop every daemon"), _steps_to(report, "down") as on_event, _locked(workspace, on_event):
            stop_scheduler(workspace.sandbox)  # first, lest a job meets a stack that is going
            workspace.sandbox.stop()
            if not keep_data:
                workspace.discard_home()
    if not keep_data:
        _finish_removal(workspace, chosen, report)


def _locked(workspace: Workspace, on_event: engine.OnEvent) -> AbstractContextManager[None]:
    return engine.locked(state_options(workspace), on_event=on_event)


def _check_state(workspace: Workspace) -> None:
    """Find a state that cannot be read before anything is given up for it."""
    if workspace.passphrase_file.exists() and engine.exists(state_options(workspace)):
        engine.outputs(engine_options(workspace), show_secrets=True)


def _finish_removal(workspace: Workspace, chosen: Literal["cli", "embedded"], report: Reporter) -> None:
    """Remove what a stack without a home still has; the cache stays, and so does what other stacks own."""
    if engine.exists(state_options(workspace)):
        if workspace.passphrase_file.exists():
            _destroy(workspace, chosen, report)
        engine.remove(state_options(workspace))
    with task(report, "remove data and state"):
        workspace.rollout.remove()
        workspace.access.remove()
        for home in workspace.discarded:
            shutil.rmtree(home, onerror=_unless_gone)


def _destroy(workspace: Workspace, chosen: Literal["cli", "embedded"], report: Reporter) -> None:
    with _steps_to(report, "down") as on_event:
        automation.take_over(engine_options(workspace), on_event)
        module_of(chosen).destroy(engine_options(workspace), on_event=on_event)


def _unless_gone(_function: object, _path: str, caught: tuple[type[BaseException], BaseException, object]) -> None:
    """Let two commands remove the same tree."""
    if not isinstance(caught[1], FileNotFoundError):
        raise caught[1]


def status(workspace: Workspace) -> Status:
    """Look at what runs.

    Raises:
        OperationError: the stack's processes are not on this machine.
    """
    settings = load_file(workspace.config_file)
    if settings.platform != "local":
        elsewhere = settings  # what a stack on another platform is read as
        raise OperationError(
            f"status looks at processes of this machine, and {workspace.stack!r} has none: its machines' health is in "
            f"Prometheus ({elsewhere.kubernetes.prometheus_url}), what was declared in `observatory outputs -e "
            f"{workspace.stack}`"
        )
    rollout = workspace.rollout.read() or rollout_of_state(workspace)
    if rollout is None or not engine.resources(state_options(workspace)):
        return Status(
            daemons=[], rollout=None, schema_version=None, fleet_size=settings.fleets.size, jobs=[], passwords=[]
        )
    return Status(
        daemons=daemon_statuses(workspace.sandbox, settings, rollout, workspace.stack),
        rollout=rollout,
        schema_version=outputs(workspace).get("schema_version"),
        fleet_size=settings.fleets.size,
        jobs=jobs(workspace),
        passwords=password_statuses(workspace, settings),
        evaluation=_last_evaluation(workspace, rollout),
    )


def _last_evaluation(workspace: Workspace, rollout: RolloutDocument) -> Entry | None:
    evaluation = last_entry(workspace.journal, "gate")
    if evaluation is None or rollout.deployment is None:
        return None
    return evaluation if evaluation.details.get("deployment") == rollout.deployment.id else None
