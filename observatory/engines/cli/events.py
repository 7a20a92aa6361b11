"""Turns the CLI's events into the embedded engine's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from observatory.engines.embedded import (
    DiagnosticEvent,
    OnEvent,
    PropertyChange,
    Step,
    StepEvent,
    differences,
)
from observatory.engines.embedded.values import is_secret, make_secret, mask

MASK = "[secret]"
_WITH_CHANGES = {"create", "update", "replace"}  # the other steps of a replacement would repeat its changes
_DIFFERENCE_KINDS = {"add": "add", "delete": "delete"}  # of the CLI's detailed differences; the others are updates


class EventCollector:
    """Emits the CLI's events as the engine's, and records them.

    Attributes:
        steps: The steps that are done.
        errors: The messages of the CLI's errors.
        failed: The first step that failed, or None.
    """

    def __init__(self, on_event: OnEvent) -> None:
        self.steps: list[Step] = []
        self.errors: list[str] = []
        self.failed: Step | None = None
        self._ended: set[tuple[str, str]] = set()
        self._on_event = on_event
        self._started: dict[str, float] = {}

    def take(self, event: Any) -> None:
        """Take one event of the Automation API."""
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
        """Record a step's end once: a component has a second event when its outputs are known."""
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
            protect=bool(state and state.protect),
        )

    def _diagnose(self, event: Any) -> None:
        severity = event.severity.removeprefix("info#")
        if severity == "error":
            self.errors.append(event.message.strip())
        if severity in ("debug", "info", "warning", "error"):
            self._on_event(DiagnosticEvent(severity=severity, message=event.message.strip(), urn=event.urn or ""))


def _changes(metadata: Any) -> Iterator[PropertyChange]:
    """Yield the changes of the inputs, then those that only the provider detects, such as changed secrets.

    In the CLI's events, all secrets have the same masked value.
    """
    if metadata.op.value not in _WITH_CHANGES:
        return
    old, new = _wrap_secrets(metadata.old.inputs if metadata.old else {}), _wrap_secrets(metadata.new.inputs)
    compared: list[str] = []
    for change in differences(old, new):
        compared.append(change.path)
        yield change
    for path, detail in (metadata.detailed_diff or {}).items():
        if not any(path.startswith(other) or other.startswith(path) for other in compared):
            name = path.partition(".")[0].partition("[")[0]
            kind: Any = _DIFFERENCE_KINDS.get(detail.diff_kind.value.partition("-")[0], "update")
            yield PropertyChange(path=path, kind=kind, old=mask(old.get(name)), new=mask(new.get(name)))


def _wrap_secrets(value: Any) -> Any:
    """Return an event's inputs with secrets in the engine's form; the CLI sends `[secret]` as their ciphertext."""
    if isinstance(value, dict):
        return make_secret(MASK) if "ciphertext" in value and is_secret(value) else _wrap_values(value)
    return [_wrap_secrets(item) for item in value] if isinstance(value, list) else value


def _wrap_values(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _wrap_secrets(value) for key, value in values.items()}


def _is_default_provider(step: Step) -> bool:
    return step.type.startswith("pulumi:providers:") and step.name.partition("_")[0] == "default"
