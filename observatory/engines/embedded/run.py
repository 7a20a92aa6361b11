"""The operations that plan or change a stack: preview, up, refresh and destroy.

Each reads the state, takes the lock, plans and performs the steps, and reports the result. A process may run any number
of operations, one after the other.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Literal

from observatory.engines.embedded.backend import StackFiles
from observatory.engines.embedded.deployment import Deployment
from observatory.engines.embedded.dynamic import DynamicProvider
from observatory.engines.embedded.errors import EngineError, Interrupted
from observatory.engines.embedded.events import Emitter, OnEvent, Result
from observatory.engines.embedded.offline import offline_plan
from observatory.engines.embedded.options import StackOptions, load
from observatory.engines.embedded.project import Project
from observatory.engines.embedded.provider import DYNAMIC, Provider
from observatory.engines.embedded.snapshot import STACK_TYPE, Snapshot
from observatory.engines.embedded.values import mask
from observatory.interruption import handle_stop_signals

_STOPPING = "stopping: waiting for the steps in flight; press Ctrl-C once more to abort them"
_ABORTED = "interrupted twice; the steps in flight were aborted and may be half done; run the operation again"

Kind = Literal["plan", "preview", "update", "refresh", "destroy"]
_DRY: tuple[Kind, ...] = ("plan", "preview")
_PROGRAM: tuple[Kind, ...] = (*_DRY, "update")  # these run the program


def preview(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Return what ``up`` would do. Changes nothing, and takes no lock.

    Raises:
        EngineError: see its subclasses; ``result`` on it holds the steps planned until then.
    """
    return _operate("preview", options, on_event)


def plan_offline(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Return what ``up`` of a new stack would do, from the program and its configuration alone.

    Reads no state and writes nothing; backend and passphrase need not exist. Calls no provider except the program's own
    dynamic ones, and those only to check inputs. IDs, outputs, the results of provider functions and secrets in the
    configuration are unknown.

    Raises:
        EngineError: see its subclasses; ``result`` on it holds the steps planned until then.
    """
    return _operate("plan", options, on_event)


def up(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Bring the stack to what the program declares.

    Raises:
        EngineError: see its subclasses; steps that succeeded stay, and ``result`` on the error lists them.
    """
    return _operate("update", options, on_event)


def refresh(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Update the state to what the providers read. Runs no program. A step is named by what was found.

    Raises:
        EngineError: see its subclasses; the state stays as it was.
    """
    return _operate("refresh", options, on_event)


def destroy(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Delete every resource of the stack. Runs no program.

    Raises:
        EngineError: see its subclasses; deleted resources are removed from the state.
    """
    return _operate("destroy", options, on_event)


def _operate(kind: Kind, options: StackOptions, on_event: OnEvent | None) -> Result:
    started, emit = time.time(), Emitter(on_event)
    project, files = load(options)
    with ExitStack() as cleanup:
        if kind not in _DRY:
            cleanup.enter_context(files.lock(emit.warn))
        deployment = _prepare(kind, options, project, files, emit, cleanup)
        try:
            with _stop_on_signals(deployment):
                _perform(kind, deployment, project)
            deployment.check_running()
        except EngineError as error:
            deployment.stop(error)
        except KeyboardInterrupt:
            deployment.stop(Interrupted(_ABORTED))
        return _finish(kind, deployment, files, started)


def _prepare(  # noqa: PLR0917 - called once
    kind: Kind, options: StackOptions, project: Project, files: StackFiles, emit: Emitter, cleanup: ExitStack
) -> Deployment:
    """Create the deployment. The provider host, the key derivation and the import of the SDK run at the same time."""
    offline, preview = kind == "plan", kind in _DRY
    latest = {} if offline else files.read()
    providers: dict[str, Provider] = {DYNAMIC: DynamicProvider(project.directory, project.name, emit.message)}
    cleanup.callback(_close, providers)
    passphrase = None if offline else options.passphrase
    snapshot = Snapshot(
        files,
        latest,
        passphrase=passphrase,
        passphrase_file=options.passphrase_file,
        salt=project.salt,
        read_only=preview,
    )
    if kind in _PROGRAM:
        import pulumi.runtime  # noqa: F401, PLC0415 - slow; runs beside the above

        snapshot.verify()  # before the settings of the stack file are decrypted
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
        _warn_of_interrupted_operations(deployment)
        _deploy(deployment, project)
        if deployment.snapshot.interrupted:
            deployment.snapshot.save()  # without the interrupted operations


def _warn_of_interrupted_operations(deployment: Deployment) -> None:
    for state, operation in deployment.snapshot.interrupted:
        message = f"an earlier run was interrupted while {operation} it; it may be half done, and is tried again"
        deployment.emit.message(message, "warning", state.urn)


def _deploy(deployment: Deployment, project: Project) -> None:
    """Run the program, then delete what it no longer declares."""
    import pulumi.runtime  # noqa: PLC0415 - imported before

    from observatory.engines.embedded.monitor import Engine, Monitor  # noqa: PLC0415 - imports the SDK
    from observatory.engines.embedded.program import run_program  # noqa: PLC0415 - imports the SDK

    settings = pulumi.runtime.Settings(
        project=deployment.project,
        stack=deployment.stack,
        organization="organization",  # the CLI's name for the only organization of a file backend
        root_directory=str(project.root),
        parallel=deployment.parallel,
        dry_run=deployment.preview,
        monitor=Monitor(deployment),
        engine=Engine(deployment.emit),
    )
    offline_before = offline_plan.set(deployment.offline)
    try:
        run_program(project.main, settings, deployment.config, deployment.emit)
        deployment.delete_undeclared()
    except EngineError as error:
        deployment.stop(error)
        raise
    finally:
        offline_plan.reset(offline_before)
        deployment.finish_outputs()


def _finish(kind: Kind, deployment: Deployment, files: StackFiles, started: float) -> Result:
    """Return the run's result, or raise its failure with the result on it; record a run that changed the state."""
    snapshot = deployment.snapshot
    root = next((state for state in snapshot.resources if state.type == STACK_TYPE), None)
    outputs = mask(root["outputs"]) if root else {}
    result = Result(steps=tuple(deployment.steps), outputs=outputs, duration=time.time() - started)
    if snapshot.changed:
        files.add_history(kind=kind, started=started, succeeded=not deployment.failure, changes=result.summary)
    if failure := deployment.failure:
        failure.result = result
        raise failure
    return result


@contextmanager
def _stop_on_signals(deployment: Deployment) -> Iterator[None]:
    """On a stop signal, wait for the steps in flight and begin no further one; on a second SIGINT, abort them."""

    def stop(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        deployment.stop(Interrupted(f"interrupted by {name}; the steps in flight were finished and saved"))
        signal.signal(signal.SIGINT, abort)
        # In another thread, because this one may be in the middle of emitting an event.
        threading.Thread(target=deployment.emit.warn, args=(_STOPPING,)).start()

    def abort(_number: int, _: FrameType | None) -> None:
        deployment.abort()  # otherwise the threads that wait for the provider would never end
        raise KeyboardInterrupt

    with handle_stop_signals(stop):
        yield
