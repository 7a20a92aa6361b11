"""The same operations as the embedded engine's, done by the Pulumi CLI through its Automation API.

Owns the translation of the CLI's events, results and errors into the engine's own records, so that callers need not
know which of the two ran. Finding the CLI is `find_cli`; choosing between the two is `observatory.operations`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from observatory.engines.embedded import (
    DiagnosticEvent,
    EngineError,
    Interrupted,
    LockedError,
    OnEvent,
    ProgramError,
    PropertyChange,
    Result,
    StackOptions,
    StateError,
    Step,
    StepEvent,
    StepFailed,
    clear_locks,
    differences,
)
from observatory.engines.embedded.values import is_secret, make_secret, mask
from observatory.engines.providers.plugin import install, missing

MASK = "[secret]"
_CHANGING = {"create", "update", "replace"}  # operations that say what changes; a replacement's parts repeat it
_TORN = "failed to load checkpoint: EOF"
_KINDS = {"add": "add", "delete": "delete"}  # of the CLI's detailed differences, without what forces a replacement


def find_cli() -> str | None:
    """Return the path of the `pulumi` on PATH, or None."""
    return shutil.which("pulumi")


def environment(backend: Path, *, plugins: bool = False) -> dict[str, str]:
    """Return what a plain `pulumi` needs in its environment to work on the same state, but for the passphrase.

    Without `plugins` it downloads none: a stack of dynamic resources needs none, and a missing one should fail at once.
    """
    variables = {
        "PULUMI_BACKEND_URL": f"file://{backend}",
        # The salt of a stack that the embedded engine made is in its state, not in the tracked configuration file.
        "PULUMI_FALLBACK_TO_STATE_SECRETS_MANAGER": "true",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        **_plugins(backend.parent / "plugins"),
    }
    return variables if plugins else {**variables, "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true"}


def _plugins(directory: Path) -> dict[str, str]:
    """Return what lets the CLI find the in-tree providers, where a plugin is missing; those on PATH go first."""
    if not missing():
        return {}
    return {"PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), str(install(directory))])}


def preview(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Say what `up` would do; see `observatory.engines.embedded.preview`."""
    return _run(options, on_event, lambda stack, collect: stack.preview(on_event=collect, color="never"))


def up(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Bring the stack to what the program declares; see `observatory.engines.embedded.up`."""
    take_over(options, on_event)
    return _run(options, on_event, lambda stack, collect: stack.up(on_event=collect, color="never", show_secrets=False))


def destroy(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Delete all resources; see `observatory.engines.embedded.destroy`."""
    take_over(options, on_event)
    return _run(options, on_event, lambda stack, collect: stack.destroy(on_event=collect, color="never"))


def forget_salt(config_file: Path) -> None:
    """Drop the salt that the CLI writes into the tracked configuration file; the state holds it too (ADR 5)."""
    if not config_file.exists():
        return
    lines = config_file.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("encryptionsalt:")]
    if kept != lines:
        config_file.write_text("".join(kept), encoding="utf-8")


def take_over(options: StackOptions, on_event: OnEvent | None) -> None:
    """Remove the lock of a CLI that was killed, and end the plugins that it left: one may still be at a step.

    Raises:
        LockedError: a run is under way.
    """
    for holder in clear_locks(options, on_event=on_event):
        from observatory.engines.cli.command import end_orphans  # noqa: PLC0415 - imports the SDK

        end_orphans(holder)


def _run(options: StackOptions, on_event: OnEvent | None, operate: Callable[[Any, Any], Any]) -> Result:
    from pulumi import automation  # noqa: PLC0415 - half a second that the embedded engine does not need

    from observatory.engines.cli.command import SessionCommand  # noqa: PLC0415 - imports the SDK

    started = time.monotonic()
    collector = _Collector(on_event or (lambda _event: None))
    configuration = options.config_file or options.cwd / f"Pulumi.{options.stack}.yaml"
    forget_salt(configuration)
    variables = {
        **environment(options.backend, plugins=options.plugins),
        "PULUMI_CONFIG_PASSPHRASE": options.passphrase,
    }
    command = SessionCommand()
    try:
        with command.stoppable():
            workspace = automation.LocalWorkspace(work_dir=str(options.cwd), env_vars=variables, pulumi_command=command)
            stack = automation.Stack.create_or_select(options.stack, workspace)
            operate(stack, collector.take)
            outputs = stack.outputs()
    except automation.errors.ConcurrentUpdateError as error:
        raise LockedError(_last_words(str(error))) from error
    except automation.errors.CommandError as error:
        raise _failure(collector, str(error)) from error
    except Interrupted as error:
        error.result = Result(steps=tuple(collector.steps))
        raise
    finally:
        forget_salt(configuration)
    return Result(
        steps=tuple(collector.steps),
        outputs={name: MASK if output.secret else output.value for name, output in outputs.items()},
        duration=time.monotonic() - started,
    )


class _Collector:
    """Turns the CLI's events into the engine's, and keeps the steps and the errors."""

    def __init__(self, on_event: OnEvent) -> None:
        self.steps: list[Step] = []
        self.errors: list[str] = []
        self.failed: Step | None = None
        self._ended: set[tuple[str, str]] = set()
        self._on_event = on_event
        self._started: dict[str, float] = {}

    def take(self, event: Any) -> None:
        if event.resource_pre_event:
            self._start(event.resource_pre_event.metadata)
        elif event.res_outputs_event:
            self._finish(event.res_outputs_event.metadata)
        elif event.res_op_failed_event:
            self._fail(event.res_op_failed_event.metadata)
        elif event.diagnostic_event and not event.diagnostic_event.ephemeral:
            self._diagnose(event.diagnostic_event)

    def _start(self, metadata: Any) -> None:
        self._started[metadata.urn] = time.monotonic()
        self._on_event(StepEvent(status="started", step=self._step(metadata)))

    def _finish(self, metadata: Any) -> None:
        """Take a step's end, once: a component has another event when its outputs are known."""
        step = self._step(metadata)
        if (step.urn, step.operation) in self._ended or _is_default_provider(step):
            return
        self._ended.add((step.urn, step.operation))
        self.steps.append(step)
        self._on_event(StepEvent(status="done", step=step))

    def _fail(self, metadata: Any) -> None:
        step = self._step(metadata)
        self.failed = self.failed or step
        self._on_event(StepEvent(status="failed", step=step))

    def _step(self, metadata: Any) -> Step:
        seconds = time.monotonic() - self._started.get(metadata.urn, time.monotonic())
        state = metadata.new or metadata.old
        return Step(
            operation=metadata.op.value,
            urn=metadata.urn,
            type=metadata.type,
            parent=state.parent or "" if state else "",
            changes=tuple(_changes(metadata)),
            replaces=tuple(metadata.keys or ()),
            seconds=seconds,
        )

    def _diagnose(self, event: Any) -> None:
        severity = event.severity.removeprefix("info#")
        if severity == "error":
            self.errors.append(event.message.strip())
        if severity in ("debug", "info", "warning", "error"):
            self._on_event(DiagnosticEvent(severity=severity, message=event.message.strip(), urn=event.urn or ""))


def _changes(metadata: Any) -> Iterator[PropertyChange]:
    """Yield how inputs change, then what only the provider can tell, such as a secret: here all of them look alike."""
    if metadata.op.value not in _CHANGING:
        return
    old, new = _readable(metadata.old.inputs if metadata.old else {}), _readable(metadata.new.inputs)
    told: list[str] = []
    for change in differences(old, new):
        told.append(change.path)
        yield change
    for path, detail in (metadata.detailed_diff or {}).items():
        if not any(path.startswith(known) or known.startswith(path) for known in told):
            name = path.partition(".")[0].partition("[")[0]
            kind: Any = _KINDS.get(detail.diff_kind.value.partition("-")[0], "update")
            yield PropertyChange(path=path, kind=kind, old=mask(old.get(name)), new=mask(new.get(name)))


def _readable(value: Any) -> Any:
    """Return inputs of an event with its secrets in the engine's form: the CLI tells `[secret]` as a ciphertext."""
    if isinstance(value, dict):
        return make_secret(MASK) if "ciphertext" in value and is_secret(value) else _each(value)
    return [_readable(item) for item in value] if isinstance(value, list) else value


def _each(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _readable(value) for key, value in values.items()}


def _is_default_provider(step: Step) -> bool:
    return step.type.startswith("pulumi:providers:") and step.name.partition("_")[0] == "default"


def _failure(collector: _Collector, text: str) -> EngineError:
    reason = "\n".join(dict.fromkeys(collector.errors)) or _last_words(text)
    error: EngineError = ProgramError(reason)
    if _TORN in reason:
        error = StateError(
            f"a CLI that was killed left its hash of the state cut short, and now says: {reason}. The state itself is "
            "whole: `observatory up` removes the hash with that run's lock, and goes on"
        )
    elif step := collector.failed:
        message = f"{step.operation} {step.type} {step.name}: {reason}"
        error = StepFailed(message, urn=step.urn, operation=step.operation, detail=reason)
    error.result = Result(steps=tuple(collector.steps))
    return error


def _last_words(text: str) -> str:
    """Return the lines in which the CLI says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if "error:" in line]
    return "\n".join(lines) or text.strip()
