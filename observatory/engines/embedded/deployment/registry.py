"""The resources of one run: their old states, the URNs that the program declared, and what was replaced or deleted."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from observatory.engines.embedded.snapshot import STACK_TYPE, Snapshot, State
from observatory.errors import ObservatoryError


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One resource as the program declares it.

    Attributes:
        state: The resource with its declared inputs and options; its ID and outputs are empty.
        delete_before_replace: The program's choice; None leaves it to the provider.
        aliases: The resource's earlier URNs, nearest first.
    """

    state: State
    delete_before_replace: bool | None = None
    aliases: tuple[str, ...] = ()


class ClaimError(ObservatoryError):
    """A resource's URN or former URN belongs to another resource of the program."""


class ResourceRegistry:
    """Records which resources a run has dealt with, and how.

    Thread-safe. The lock is never held while a provider works.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._lock = threading.Lock()
        self._former: dict[str, str] = {}  # a URN registered in this run: the URN of its old state
        self._registered: dict[str, State] = {}
        self._deleted: set[str] = set()  # a replacement may create such a URN again
        self._replaced: set[str] = set()

    @cached_property
    def olds(self) -> dict[str, State]:
        """The old states by URN, as they were before the run."""
        return {state.urn: state for state in self._snapshot.olds if not state["delete"]}

    def claim(self, goal: Goal) -> State | None:
        """Reserve the resource's URN for this run, and return the old state that the resource continues.

        Raises:
            ClaimError: another resource has the same URN, or continues the same old state.
        """
        urn = goal.state.urn
        with self._lock:
            if urn in self._former:
                raise ClaimError("duplicate resource: this type and name is declared twice; rename one of them")
            former = next((name for name in (urn, *goal.aliases) if name in self.olds), urn)
            if former in self.olds and former in self._former.values():
                raise ClaimError(f"another resource already has the alias {former}; remove the alias from one of them")
            self._former[urn] = former
            return self.olds.get(former)

    def former_urn(self, urn: str) -> str:
        """Return the URN of a registered resource's old state; the resource's own URN if it has none."""
        with self._lock:
            return self._former.get(urn, urn)

    def claimed_urns(self) -> set[str]:
        """Return the URNs of the old states that registered resources continue."""
        with self._lock:
            return set(self._former.values())

    def add(self, state: State) -> None:
        """Record that a resource is registered."""
        with self._lock:
            self._registered[state.urn] = state

    def registered(self, urn: str) -> State:
        """Return a resource that is registered."""
        return self._registered[urn]

    def latest(self, urn: str) -> State | None:
        """Return a resource as this run registered it, else its old state, else None."""
        return self._registered.get(urn) or self.olds.get(urn)

    @property
    def root(self) -> State | None:
        """The stack's own resource, once it is registered."""
        return next((state for state in list(self._registered.values()) if state.type == STACK_TYPE), None)

    def mark_deleted(self, urns: Iterable[str]) -> None:
        """Record that resources are deleted in this run."""
        with self._lock:
            self._deleted.update(urns)

    def is_deleted(self, urn: str) -> bool:
        """Return whether a resource is deleted in this run."""
        return urn in self._deleted

    def mark_replaced(self, urn: str) -> None:
        """Record that a resource is replaced in this run."""
        with self._lock:
            self._replaced.add(urn)

    def any_replaced(self, urns: Iterable[str]) -> bool:
        """Return whether one of the resources is replaced in this run."""
        with self._lock:
            return not self._replaced.isdisjoint(urns)
