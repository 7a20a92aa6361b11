"""The engine's operations: preview, up, refresh, destroy, and reading the state.

Owns their course: read, lock, plan and perform, report. Each may be called again and again in one process.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from observatory.engines.embedded.backend import StackFiles
from observatory.engines.embedded.deployment import Deployment
from observatory.engines.embedded.dynamic import DynamicProvider
from observatory.engines.embedded.errors import EngineError, Interrupted
from observatory.engines.embedded.events import Emitter, OnEvent, Result
from observatory.engines.embedded.offline import offline_plan
from observatory.engines.embedded.project import Project
from observatory.engines.embedded.provider import DYNAMIC, Provider
from observatory.engines.embedded.snapshot import STACK_TYPE, Snapshot, State
from observatory.engines.embedded.values import PROVIDER_KEY, mask, reveal
from observatory.interruption import handle_stop_signals

_STOPPING = "stopping: what has begun is brought to its end; Ctrl-C once more breaks it off"
_BROKEN_OFF = "interrupted twice; what had begun is broken off, and may be half done"
_DEFAULT_PARALLEL = 4  # the workers of the SDK's dynamic provider host

Kind = Literal["plan", "preview", "update", "refresh", "destroy"]
_DRY: tuple[Kind, ...] = ("plan", "preview")
_PROGRAM: tuple[Kind, ...] = (*_DRY, "update")  # these run the program


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """Which stack to work on, and how.

    Attributes:
        cwd: The project's directory, with Pulumi.yaml.
        stack: The stack's name.
        backend: The directory of the ``file://`` backend; it is made if need be.
        passphrase: Protects the stack's secrets.
        config_file: The stack's configuration, by default ``Pulumi.<stack>.yaml`` in ``cwd`` if there is one.
        parallel: How many resources are worked on at once.
        packages: What makes the provider of each package that is served in-tree, by the package's name.
        plugins: Whether the CLI may download provider plugins; the embedded engine has none.
    """

    cwd: Path
    stack: str
    backend: Path
    passphrase: str = field(repr=False)
    config_file: Path | None = None
    parallel: int = _DEFAULT_PARALLEL
    packages: Mapping[str, Callable[[], Provider]] = field(default_factory=dict, repr=False)
    plugins: bool = False


@dataclass(frozen=True, kw_only=True)
class ResourceRecord:
    """A resource as the state has it; secrets in the outputs are masked unless they were asked for."""

    urn: str
    type: str
    name: str
    id: str
    parent: str
    custom: bool
    protect: bool
    outputs: dict[str, Any]


def preview(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Tell what ``up`` would do. Touches nothing, and takes no lock.

    Raises:
        EngineError: see its subclasses; ``result`` on it holds the steps planned until then.
    """
    return _operate("preview", options, on_event)


def plan_offline(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Tell what ``up`` of a stack that has nothing yet would do, by the program and its configuration alone.

    Reads no state and writes nothing; backend and passphrase need not exist. No provider but the program's own dynamic
    ones is asked, and those only to check inputs: IDs, outputs and the results of provider functions are unknown, and
    so are secrets in the configuration.

    Raises:
        EngineError: see its subclasses; ``result`` on it holds the steps planned until then.
    """
    return _operate("plan", options, on_event)


def up(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Bring the stack to what the program declares.

    Raises:
        EngineError: see its subclasses; what succeeded is kept, and ``result`` on the error tells what that was.
    """
    return _operate("update", options, on_event)


def refresh(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Take into the state what the providers find. Runs no program. Steps are named by what was found.

    Raises:
        EngineError: see its subclasses; the state is then as it was.
    """
    return _operate("refresh", options, on_event)


def destroy(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Delete every resource of the stack. Runs no program.

    Raises:
        EngineError: see its subclasses; what was deleted is out of the state.
    """
    return _operate("destroy", options, on_event)


def init(options: StackOptions) -> None:
    """Make an empty stack, which a plain `pulumi` finds too; an existing one is left as it is.

    Raises:
        StateError, PassphraseError, ConfigError: the state cannot be read or written.
    """
    project, files = _locate(options)
    if not files.checkpoint.exists():
        files.back_up()
        Snapshot(files, {}, passphrase=options.passphrase, salt=project.salt).save()


def exists(options: StackOptions) -> bool:
    """Tell whether the backend has the stack. Needs no passphrase.

    Raises:
        ConfigError: Pulumi.yaml or the stack's configuration cannot be read.
    """
    _, files = _locate(options)
    return files.checkpoint.exists()


def remove(options: StackOptions) -> None:
    """Remove the stack's state and history, as `pulumi stack rm --force` does. Its resources are not touched.

    Raises:
        LockedError: a run is under way.
    """
    _, files = _locate(options)
    with files.lock(lambda _text: None):
        files.remove()


@contextmanager
def locked(options: StackOptions, *, on_event: OnEvent | None = None) -> Iterator[None]:
    """Hold the stack's lock for work on it that is no operation of an engine; neither engine starts one meanwhile.

    Raises:
        LockedError: a run is under way.
    """
    _, files = _locate(options)
    with files.lock(Emitter(on_event).warn):
        yield


def clear_locks(options: StackOptions, *, on_event: OnEvent | None = None) -> tuple[int, ...]:
    """Remove the locks that dead processes of this host left on the stack, and return those processes.

    Raises:
        LockedError: a run is under way.
    """
    _, files = _locate(options)
    return files.clear_locks(Emitter(on_event).warn)


def outputs(options: StackOptions, *, show_secrets: bool = False) -> dict[str, Any]:
    """Return the stack's outputs from the state, secrets masked unless asked for.

    Raises:
        StateError, PassphraseError, ConfigError: the state cannot be read.
    """
    _, files = _locate(options)
    latest = files.read()
    if show_secrets:
        states: list[State] = Snapshot(files, latest, passphrase=options.passphrase, read_only=True).olds
        return next((reveal(state["outputs"]) for state in states if state.type == STACK_TYPE), {})
    return next((mask(raw.get("outputs", {})) for raw in latest.get("resources", []) if raw["type"] == STACK_TYPE), {})


def resources(options: StackOptions, *, show_secrets: bool = False) -> tuple[ResourceRecord, ...]:
    """Return the stack's resources from the state, dependencies first, secrets masked unless asked for.

    Needs the passphrase for secrets only.

    Raises:
        StateError, PassphraseError, ConfigError: the state cannot be read.
    """
    _, files = _locate(options)
    latest = files.read()
    if show_secrets:
        states: list[State] = Snapshot(files, latest, passphrase=options.passphrase, read_only=True).olds
        return tuple(_record(state, reveal) for state in states if not state["delete"])
    return tuple(_record(raw, mask) for raw in latest.get("resources", []) if not raw.get("delete"))


def _operate(kind: Kind, options: StackOptions, on_event: OnEvent | None) -> Result:
    started, emit = time.time(), Emitter(on_event)
    project, files = _locate(options)
    with ExitStack() as cleanup:
        if kind not in _DRY:
            cleanup.enter_context(files.lock(emit.warn))
        deployment = _prepare(kind, options, project, files, emit, cleanup)
        snapshot = deployment.snapshot
        try:
            with _stoppable(deployment):
                _perform(kind, deployment, project)
            deployment.check_running()
        except EngineError as error:
            deployment.stop(error)
        except KeyboardInterrupt:
            deployment.stop(Interrupted(_BROKEN_OFF))
        root = next((state for state in snapshot.resources if state.type == STACK_TYPE), None)
        outputs = mask(root["outputs"]) if root else {}
        result = Result(steps=tuple(deployment.steps), outputs=outputs, duration=time.time() - started)
        if snapshot.changed:
            files.add_history(kind=kind, started=started, succeeded=not deployment.failure, changes=result.summary)
        if failure := deployment.failure:
            failure.result = result
            raise failure
        return result


def _prepare(  # noqa: PLR0917 - called once
    kind: Kind, options: StackOptions, project: Project, files: StackFiles, emit: Emitter, cleanup: ExitStack
) -> Deployment:
    """Start what takes time (host, key) side by side, and put the run together."""
    offline, preview = kind == "plan", kind in _DRY
    latest = {} if offline else files.read()
    providers: dict[str, Provider] = {DYNAMIC: DynamicProvider(project.directory, project.name, emit.message)}
    cleanup.callback(_close, providers)
    passphrase = None if offline else options.passphrase
    snapshot = Snapshot(files, latest, passphrase=passphrase, salt=project.salt, read_only=preview)
    if kind in _PROGRAM:
        import pulumi.runtime  # noqa: F401, PLC0415 - costly; beside the above
    return Deployment(
        snapshot=snapshot,
        stack=options.stack,
        project=project.name,
        providers=providers,
        packages=options.packages,
        config=project.config(snapshot.crypter.decrypt),
        preview=preview,
        offline=offline,
        parallel=options.parallel,
        emit=emit,
    )


def _close(providers: dict[str, Provider]) -> None:
    for provider in providers.values():
        provider.close()


def _perform(kind: Kind, deployment: Deployment, project: Project) -> None:
    if kind == "refresh":
        deployment.refresh()
    elif kind == "destroy":
        deployment.delete_undeclared()
    else:
        _deploy(deployment, project)


def _deploy(deployment: Deployment, project: Project) -> None:
    """Run the program, then delete what it no longer declares."""
    import pulumi.runtime  # noqa: PLC0415 - imported before

    from observatory.engines.embedded.monitor import Engine, Monitor  # noqa: PLC0415 - imports the SDK
    from observatory.engines.embedded.program import run_program  # noqa: PLC0415 - imports the SDK

    for state, operation in deployment.snapshot.interrupted:
        message = f"an earlier run was interrupted while {operation} it; it may be half done, and is tried again"
        deployment.emit.message(message, "warning", state.urn)
    settings = pulumi.runtime.Settings(
        project=deployment.project,
        stack=deployment.stack,
        organization="organization",  # what the CLI calls the one organization of a file backend
        root_directory=str(project.root),
        parallel=deployment.parallel,
        dry_run=deployment.preview,
        monitor=Monitor(deployment),
        engine=Engine(deployment.emit),
    )
    asked_nobody = offline_plan.set(deployment.offline)
    try:
        run_program(project.main, settings, deployment.config, deployment.emit)
        deployment.delete_undeclared()
    except EngineError as error:
        deployment.stop(error)
        raise
    finally:
        offline_plan.reset(asked_nobody)
        deployment.finish_outputs()
    if deployment.snapshot.interrupted:
        deployment.snapshot.save()  # which drops them


@contextmanager
def _stoppable(deployment: Deployment) -> Iterator[None]:
    """On a signal that stops, let the steps in flight end and begin nothing more; a second SIGINT breaks them off."""

    def stop(number: int, _: FrameType | None) -> None:
        deployment.stop(Interrupted(f"interrupted by {signal.Signals(number).name}; what was begun is done and saved"))
        signal.signal(signal.SIGINT, break_off)
        # In a thread of its own: this one may be in the middle of telling something else.
        threading.Thread(target=deployment.emit.warn, args=(_STOPPING,)).start()

    def break_off(_number: int, _: FrameType | None) -> None:
        deployment.abort()  # or the threads that wait for its answers would never end
        raise KeyboardInterrupt

    with handle_stop_signals(stop):
        yield


def _locate(options: StackOptions) -> tuple[Project, StackFiles]:
    project = Project.load(options.cwd.resolve(), options.stack, options.config_file)
    return project, StackFiles(root=options.backend.resolve(), project=project.name, stack=options.stack)


def _record(raw: dict[str, Any], shown_as: Callable[[Any], Any]) -> ResourceRecord:
    shown = {key: value for key, value in raw.get("outputs", {}).items() if key != PROVIDER_KEY}
    texts = {key: raw.get(key, "") for key in ("urn", "type", "id", "parent")}
    flags = {key: raw.get(key, False) for key in ("custom", "protect")}
    return ResourceRecord(**texts, **flags, name=raw["urn"].rpartition("::")[2], outputs=shown_as(shown))
