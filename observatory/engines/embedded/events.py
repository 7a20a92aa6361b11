"""Steps, events and results of a run, and the emitter that passes events to the caller."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from observatory.engines.embedded.values import PropertyChange

Operation = Literal[
    "create", "update", "same", "delete", "replace", "create-replacement", "delete-replaced", "remove-pending-replace",
    "refresh",
]  # fmt: skip
Severity = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operation on one resource, in the CLI's terms.

    Attributes:
        operation: The operation. A replacement consists of ``replace``, ``create-replacement`` and
            ``delete-replaced``, in the order in which they are done.
        urn: The resource.
        type: Its type.
        parent: Its parent's URN, empty for the stack.
        changes: How its inputs change (after a refresh: its outputs; for a creation: all of them), secrets masked.
        replaces: The properties that force a replacement.
        seconds: The duration of the work; 0 in a plan.
        protect: Whether the resource is protected from deletion.
    """

    operation: Operation
    urn: str
    type: str
    parent: str = ""
    changes: tuple[PropertyChange, ...] = ()
    replaces: tuple[str, ...] = ()
    seconds: float = 0.0
    protect: bool = False

    @property
    def name(self) -> str:
        """The name that the program gave the resource."""
        return self.urn.rpartition("::")[2]


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """A step started, succeeded, or failed for the reason in ``message``."""

    status: Literal["started", "done", "failed"]
    step: Step
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class DiagnosticEvent:
    """A message from the program (``pulumi.log``, print), a provider or the engine; ``urn`` may be empty."""

    severity: Severity
    message: str
    urn: str = ""


Event = StepEvent | DiagnosticEvent
OnEvent = Callable[[Event], None]

in_program: ContextVar[bool] = ContextVar(
    "in_program", default=False
)  # whether the running code belongs to the program


class Emitter:
    """Passes events to the caller's function, one at a time. What that function prints is not the program's output."""

    def __init__(self, on_event: OnEvent | None) -> None:
        self._on_event = on_event or (lambda _event: None)
        self._lock = threading.RLock()

    def __call__(self, event: Event) -> None:
        """Pass one event to the caller."""
        token = in_program.set(False)
        try:
            with self._lock:
                self._on_event(event)
        finally:
            in_program.reset(token)

    def message(self, text: str, severity: Severity = "info", urn: str = "") -> None:
        """Pass a message to the caller."""
        self(DiagnosticEvent(severity=severity, message=text, urn=urn))

    def warn(self, text: str) -> None:
        """Pass a warning to the caller."""
        self.message(text, "warning")


_LOGICAL: set[Operation] = {"create", "update", "same", "delete", "replace"}


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a run or of a plan.

    Attributes:
        steps: The steps, in the order in which they ended.
        outputs: The stack's outputs, secrets and unknowns masked.
        duration: The duration of the run in seconds.
    """

    steps: tuple[Step, ...]
    outputs: dict[str, Any] = field(default_factory=dict)
    duration: float = 0.0

    @property
    def summary(self) -> dict[str, int]:
        """The number of resources by operation: create, update, replace, delete and same."""
        return dict(Counter(step.operation for step in self.steps if step.operation in _LOGICAL))
