"""Performs steps: announces each, records it as pending, does the work, saves the result and reports the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NoReturn, cast

from observatory.engines.embedded import values
from observatory.engines.embedded.errors import EngineError, Interrupted, StepFailed
from observatory.engines.embedded.events import Emitter, Operation, Step, StepEvent
from observatory.engines.embedded.provider import PROVIDER_TYPE, ProviderError
from observatory.engines.embedded.snapshot import Snapshot, State
from observatory.engines.embedded.values import Properties

Status = Literal["started", "done", "failed"]


class StepExecutor:
    """Performs the steps of one run, until one fails or the run is stopped.

    Attributes:
        steps: The steps that are done, in the order in which they ended.
        failure: Why the run stops, or None.
    """

    def __init__(self, snapshot: Snapshot, emit: Emitter) -> None:
        self.steps: list[Step] = []
        self.failure: EngineError | None = None
        self._snapshot, self._emit = snapshot, emit
        self._lock = threading.RLock()  # a signal handler may call `stop` while this thread holds the lock

    def stop(self, reason: EngineError) -> None:
        """Begin no further step; steps in flight end as usual."""
        with self._lock:
            self.failure = self.failure or reason

    def check_running(self) -> None:
        """Raise Interrupted if the run is stopping."""
        if self.failure is not None:
            raise Interrupted(f"stopped: {self.failure}") from self.failure

    def perform(self, step: Step, subject: State, work: Callable[[], None], **left: Any) -> None:
        """Perform one step.

        Args:
            step: What to announce and report.
            subject: The resource that the step works on.
            work: Does the work.
            left: What the step leaves in the state, see ``Snapshot.end``.

        Raises:
            StepFailed: the provider failed.
            Interrupted: the run is stopping.
        """
        self.check_running()
        self.report("started", step)
        begun = time.monotonic()
        verb = step.operation.partition("-")[0]
        if subject["custom"] and verb in {"create", "update", "delete"}:
            self._snapshot.begin(subject, f"{verb[:-1]}ing")
        try:
            work()
        except ProviderError as error:
            self._snapshot.end(subject)
            self._fail(step, subject, error)
        self._snapshot.end(subject, **left)
        self.report("done", replace(step, seconds=time.monotonic() - begun))

    def report(self, status: Status, step: Step, message: str = "") -> None:
        """Emit a step's event, and record the step when it is done. Default providers are left out, as in the CLI."""
        if step.type.startswith(PROVIDER_TYPE) and step.name == "default":
            return
        with self._lock:
            if status == "done":
                self.steps.append(step)
        self._emit(StepEvent(status=status, step=step, message=message))

    def refuse(self, operation: str, state: State, reason: str, detail: str = "") -> NoReturn:
        """Fail a resource before any of its steps began.

        Raises:
            StepFailed: always.
        """
        self._fail(step_for(cast("Operation", operation), state), state, ProviderError(reason, detail))

    def _fail(self, step: Step, state: State, error: ProviderError) -> NoReturn:
        reason, detail = values.scrub(str(error), state["inputs"]), values.scrub(error.detail, state["inputs"])
        message = f"{step.operation} {step.type} {step.name}: {reason}"
        failure = StepFailed(message, urn=step.urn, operation=step.operation, detail=detail)
        self.stop(failure)
        self.report("failed", step, reason)
        raise failure from None  # the cause may contain secrets


def step_for(operation: Operation, state: State, olds: Properties | None = None) -> Step:
    """Return a step on a resource; with the old inputs given, it holds how they change."""
    changes = () if olds is None else tuple(values.differences(olds, state["inputs"]))
    return Step(
        operation=operation,
        urn=state.urn,
        type=state.type,
        parent=state["parent"],
        changes=changes,
        protect=state["protect"],
    )
