"""Deletes what the program no longer declares and what replacements left, dependents first."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from observatory.engines.embedded.deployment.executor import StepExecutor
from observatory.engines.embedded.deployment.operations import Operations
from observatory.engines.embedded.deployment.registry import ResourceRegistry
from observatory.engines.embedded.deployment.replacement import PROTECTED
from observatory.engines.embedded.snapshot import Snapshot, State


class Removal:
    """Deletes the resources that are left over at the end of a run."""

    def __init__(
        self, snapshot: Snapshot, registry: ResourceRegistry, executor: StepExecutor, operations: Operations
    ) -> None:
        self._snapshot, self._registry, self._executor, self._operations = snapshot, registry, executor, operations

    def delete_undeclared(self, parallel: int) -> None:
        """Delete all resources that no step of this run has dealt with, ``parallel`` at a time.

        Protected resources, and the resources that they need, stay.

        Raises:
            StepFailed: a provider failed, or a resource is protected.
            Interrupted: the run is stopping.
        """
        protected = [state for state in self._snapshot.olds if state["protect"] and not state["delete"]]
        undeclared = _without_needs(self._snapshot.olds, protected)
        self._registry.mark_deleted(state.urn for state in undeclared)
        for level in _levels(undeclared):
            with ThreadPoolExecutor(parallel) as pool:
                for _ in pool.map(self._delete, level):
                    self._executor.check_running()
        for state in protected:
            self._executor.refuse("delete", state, PROTECTED)

    def _delete(self, state: State) -> None:
        if state["pendingReplacement"] and not state["delete"]:
            self._operations.forget(state)
        else:
            self._operations.delete(state, "delete-replaced" if state["delete"] else "delete")


def _levels(states: list[State]) -> Iterator[list[State]]:
    """Yield resources (given dependencies first) in levels to delete one after the other.

    The resources of a level are needed by resources of earlier levels only.
    """
    while states:
        needed: set[str] = set()
        level, later = list[State](), list[State]()
        for state in reversed(states):
            (later if state.urn in needed else level).append(state)
            needed |= state.needs()
        yield level
        states = later[::-1]


def _without_needs(states: list[State], roots: list[State]) -> list[State]:
    """Return the resources (dependencies first) without the roots and all that those need, directly or not."""
    left, needed = list[State](), set[str]()
    for state in reversed(states):
        if state.urn in needed or any(state is root for root in roots):
            needed |= state.needs()
        else:
            left.append(state)
    return left[::-1]
