"""Replaces a resource: creates the new one first, or deletes the old one and its dependents first."""

from __future__ import annotations

import threading
from itertools import dropwhile

from observatory.engines.embedded.deployment.executor import StepExecutor
from observatory.engines.embedded.deployment.operations import Operations
from observatory.engines.embedded.deployment.planner import Planner
from observatory.engines.embedded.deployment.registry import Goal, ResourceRegistry
from observatory.engines.embedded.provider import Diff
from observatory.engines.embedded.snapshot import Snapshot, State
from observatory.engines.embedded.values import UNKNOWN, Properties

PROTECTED = "the resource is protected; remove `protect` from its options and run `up` first"


class Replacement:
    """Replaces resources of one run."""

    def __init__(
        self,
        snapshot: Snapshot,
        registry: ResourceRegistry,
        executor: StepExecutor,
        planner: Planner,
        operations: Operations,
    ) -> None:
        self._snapshot, self._registry, self._executor = snapshot, registry, executor
        self._planner, self._operations = planner, operations
        self._choosing = threading.Lock()  # one replacement at a time chooses its dependents

    def replace(self, goal: Goal, old: State, declared: Properties, diff: Diff) -> None:
        """Replace one resource.

        Args:
            goal: The resource as the program declares it.
            old: Its old state.
            declared: Its declared inputs, not checked yet.
            diff: Why it is replaced.

        Raises:
            StepFailed: the resource or one of its dependents is protected, or a provider failed.
        """
        new = goal.state
        if new["protect"] and old["protect"]:
            self._executor.refuse("replace", new, PROTECTED)
        self._registry.mark_replaced(new.urn)
        self._planner.check(new, {}, declared)
        chosen = goal.delete_before_replace
        if diff.delete_before_replace if chosen is None else chosen:
            self._delete_first(old)
        self._operations.create_replacement(new, old, diff.replaces)

    def _delete_first(self, old: State) -> None:
        dependents = self._dependents(old)
        if not old["pendingReplacement"]:
            self._registry.mark_deleted([old.urn])  # before its dependents: some are deleted with it
        for dependent in reversed(dependents):
            mark = "" if dependent["delete"] else "pendingReplacement"
            self._operations.delete(dependent, "delete-replaced", mark)
        if not old["pendingReplacement"]:
            self._operations.delete(old, "delete-replaced", mark="pendingReplacement")

    def _dependents(self, root: State) -> list[State]:
        """Return the resources that must be deleted before ``root`` and created again after it, and mark them."""
        with self._choosing:
            dependents, urns, claimed = list[State](), {root.urn}, self._registry.claimed_urns()
            for state in dropwhile(lambda state: state is not root, self._snapshot.olds):
                is_settled = not state["delete"] and (state.urn in claimed or state["pendingReplacement"])
                if is_settled or not self._is_replaced_with(state, urns):
                    continue
                if state["protect"]:
                    reason = f"it depends on {root.urn}, which must be replaced; {PROTECTED}"
                    self._executor.refuse("replace", state, reason)
                dependents.append(state)
                urns.add(state.urn)
            self._registry.mark_deleted(urns - {root.urn})
            return dependents

    def _is_replaced_with(self, state: State, urns: set[str]) -> bool:
        """Return whether the deletion of ``urns`` forces the resource's replacement."""
        if not state.is_managed:
            return False
        if urns & {state.provider_urn, state["deletedWith"], *state["replaceWith"]}:
            return True
        lost = [key for key, needs in state["propertyDependencies"].items() if urns.intersection(needs)]
        inputs = state["inputs"] | dict.fromkeys(lost, UNKNOWN)
        return bool(lost) and bool(self._planner.compare(state, inputs, state).replaces)
