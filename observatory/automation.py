"""The same operations as the embedded engine's, done by the Pulumi CLI through its Automation API.

Owns the translation of the CLI's events, results and errors into the engine's own records, so that callers need not
know which of the two ran. Finding the CLI is `find_cli`; choosing between the two is `observatory.operations`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from observatory.engine import (
    DiagnosticEvent,
    EngineError,
    Interrupted,
    LockedError,
    OnEvent,
    ProgramError,
    Result,
    StackOptions,
    Step,
    StepEvent,
    StepFailed,
    clear_locks,
)

MASK = "[secret]"


def find_cli() -> str | None:
    """Return the path of the `pulumi` on PATH, or None."""
    return shutil.which("pulumi")


def environment(backend: Path) -> dict[str, str]:
    """Return what a plain `pulumi` needs in its environment to work on the same state, but for the passphrase."""
    return {
        "PULUMI_BACKEND_URL": f"file://{backend}",
        # The salt of a stack that the embedded engine made is in its state, not in the tracked configuration file.
        "PULUMI_FALLBACK_TO_STATE_SECRETS_MANAGER": "true",
        # No resource of this program needs a downloaded plugin; a missing one should fail at once.
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }


def preview(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Say what `up` would do; see `observatory.engine.preview`."""
    return _run(options, on_event, lambda stack, collect: stack.preview(on_event=collect, color="never"))


def up(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Bring the stack to what the program declares; see `observatory.engine.up`."""
    _take_over(options, on_event)
    return _run(options, on_event, lambda stack, collect: stack.up(on_event=collect, color="never", show_secrets=False))


def destroy(options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
    """Delete all resources; see `observatory.engine.destroy`."""
    _take_over(options, on_event)
    return _run(options, on_event, lambda stack, collect: stack.destroy(on_event=collect, color="never"))


def forget_salt(config_file: Path) -> None:
    """Drop the salt that the CLI writes into the tracked configuration file; the state holds it too (ADR 5)."""
    lines = config_file.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("encryptionsalt:")]
    if kept != lines:
        config_file.write_text("".join(kept), encoding="utf-8")


def _take_over(options: StackOptions, on_event: OnEvent | None) -> None:
    """Remove the lock of a CLI that was killed, and end the plugins that it left: one may still be at a step."""
    from observatory.pulumi_command import end_orphans  # noqa: PLC0415 - imports the SDK

    for holder in clear_locks(options, on_event=on_event):
        end_orphans(holder)


def _run(options: StackOptions, on_event: OnEvent | None, operate: Callable[[Any, Any], Any]) -> Result:
    from pulumi import automation  # noqa: PLC0415 - half a second that the embedded engine does not need

    from observatory.pulumi_command import SessionCommand  # noqa: PLC0415 - imports the SDK

    started = time.monotonic()
    collector = _Collector(on_event or (lambda _event: None))
    configuration = options.config_file or options.cwd / f"Pulumi.{options.stack}.yaml"
    forget_salt(configuration)
    variables = {**environment(options.backend), "PULUMI_CONFIG_PASSPHRASE": options.passphrase}
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
        step = self._step(metadata)
        self.steps.append(step)
        self._on_event(StepEvent(status="done", step=step))

    def _fail(self, metadata: Any) -> None:
        step = self._step(metadata)
        self.failed = self.failed or step
        self._on_event(StepEvent(status="failed", step=step))

    def _step(self, metadata: Any) -> Step:
        seconds = time.monotonic() - self._started.get(metadata.urn, time.monotonic())
        return Step(operation=metadata.op.value, urn=metadata.urn, type=metadata.type, seconds=seconds)

    def _diagnose(self, event: Any) -> None:
        severity = event.severity.removeprefix("info#")
        if severity == "error":
            self.errors.append(event.message.strip())
        if severity in ("debug", "info", "warning", "error"):
            self._on_event(DiagnosticEvent(severity=severity, message=event.message.strip(), urn=event.urn or ""))


def _failure(collector: _Collector, text: str) -> EngineError:
    reason = "\n".join(dict.fromkeys(collector.errors)) or _last_words(text)
    error: EngineError = ProgramError(reason)
    if step := collector.failed:
        message = f"{step.operation} {step.type} {step.name}: {reason}"
        error = StepFailed(message, urn=step.urn, operation=step.operation, detail=reason)
    error.result = Result(steps=tuple(collector.steps))
    return error


def _last_words(text: str) -> str:
    """Return the lines in which the CLI says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if "error:" in line]
    return "\n".join(lines) or text.strip()
