"""One run over one stack: registers each resource that the program declares, then finishes the stack."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

from observatory.engines.embedded import values
from observatory.engines.embedded.deployment.executor import StepExecutor
from observatory.engines.embedded.deployment.operations import Operations
from observatory.engines.embedded.deployment.planner import Planner
from observatory.engines.embedded.deployment.provider_pool import ProviderPool
from observatory.engines.embedded.deployment.refresh import Refresh
from observatory.engines.embedded.deployment.registry import ClaimError, Goal, ResourceRegistry
from observatory.engines.embedded.deployment.removal import Removal
from observatory.engines.embedded.deployment.replacement import Replacement
from observatory.engines.embedded.errors import EngineError
from observatory.engines.embedded.events import Emitter, Step
from observatory.engines.embedded.provider import PROVIDER_TYPE, Provider
from observatory.engines.embedded.snapshot import STACK_TYPE, Snapshot, State
from observatory.engines.embedded.values import Properties


@dataclass(kw_only=True, eq=False)
class Deployment:
    """One run over one stack. Its public methods may be called from several threads at once.

    Attributes:
        snapshot: The stack's state.
        stack: The stack's name.
        project: The project's name.
        providers: The providers that are running, by package; those that the run starts are added.
        packages: Start the provider of each other package, when it is first needed.
        config: The stack's configuration (secrets wrapped), which configures the default providers.
        preview: Whether to plan only.
        offline: Whether to plan from the program alone.
        parallel: How many resources are worked on at once.
        emit: Receives the run's events.
    """

    snapshot: Snapshot
    stack: str
    project: str
    providers: dict[str, Provider]
    packages: Mapping[str, Callable[[], Provider]]
    config: Properties
    preview: bool
    offline: bool
    parallel: int
    emit: Emitter

    def __post_init__(self) -> None:
        snapshot = self.snapshot
        self._slots = threading.BoundedSemaphore(self.parallel)
        self._stack_outputs: Properties | None = None
        self._registry = registry = ResourceRegistry(snapshot)
        self._executor = executor = StepExecutor(snapshot, self.emit)
        self._providers = providers = ProviderPool(
            registry,
            executor,
            running=self.providers,
            packages=self.packages,
            config=self.config,
            offline=self.offline,
        )
        self._planner = planner = Planner(registry, executor, providers)
        self._operations = operations = Operations(registry, executor, providers, preview=self.preview)
        self._replacement = Replacement(snapshot, registry, executor, planner, operations)
        self._removal = Removal(snapshot, registry, executor, operations)
        self._refresh = Refresh(snapshot, executor, providers, planner)

    # -- the program's resources --

    def register(self, goal: Goal) -> State:
        """Bring one resource to its declared state, and return it as it then is.

        Raises:
            StepFailed: its provider refused or failed.
            UnsupportedError: this engine has no provider for its package.
            Interrupted: the run is stopping.
        """
        self.check_running()
        new, is_provider = goal.state, goal.state.type.startswith(PROVIDER_TYPE)
        try:
            if new["custom"] and not new["provider"] and not is_provider:
                new["provider"] = self._providers.default_reference(new, self._register_default_provider)
            old = self._claim(goal)
            # A default provider is registered under a lock for which resources that hold the slots may wait.
            with nullcontext() if is_provider else self._slots:
                self._deploy(goal, old)
        except EngineError as error:
            self.stop(error)
            raise
        self._registry.add(new)
        return new

    def register_outputs(self, urn: str, outputs: Properties) -> None:
        """Set a component's outputs; the stack's own wait for ``finish_outputs``."""
        state = self._registry.registered(urn)
        if state.type == STACK_TYPE:
            self._stack_outputs = outputs
        elif state["outputs"] != outputs:
            self.snapshot.amend(state, outputs=outputs)

    def urn(self, type_: str, name: str, parent: str, *, stack: str = "", project: str = "") -> str:
        """Return the URN of a resource, by default of this stack and project."""
        parent_type = parent.split("::")[2] if parent else STACK_TYPE
        qualified = type_ if parent_type == STACK_TYPE else f"{parent_type}${type_}"
        return f"urn:pulumi:{stack or self.stack}::{project or self.project}::{qualified}::{name}"

    def former_urn(self, urn: str) -> str:
        """Return the URN of a registered resource's old state; the resource's own URN if it has none."""
        return self._registry.former_urn(urn)

    # -- the rest of the run --

    def delete_undeclared(self) -> None:
        """Delete what the program no longer declares and what replacements left, dependents first.

        Protected resources, and the resources that they need, stay.

        Raises:
            StepFailed: a provider failed, or a resource is protected.
            Interrupted: the run is stopping.
        """
        self._removal.delete_undeclared(self.parallel)

    def refresh(self) -> None:
        """Read every resource from its provider, and take the findings into the state.

        Raises:
            StepFailed: a provider failed; the state stays as it was.
            Interrupted: the run is stopping; the state stays as it was.
        """
        self._refresh.run(self.parallel)

    def finish_outputs(self) -> None:
        """Set the stack's outputs; after a failure, outputs that are not declared any more are kept."""
        root = self._registry.root
        if root is not None and self._stack_outputs is not None:
            outputs = (root["outputs"] if self.failure else {}) | self._stack_outputs
            if root["outputs"] != outputs:
                self.snapshot.amend(root, outputs=outputs)

    # -- its end --

    @property
    def steps(self) -> list[Step]:
        """The steps that are done, in the order in which they ended."""
        return self._executor.steps

    @property
    def failure(self) -> EngineError | None:
        """Why the run stops, or None."""
        return self._executor.failure

    def stop(self, reason: EngineError) -> None:
        """Begin no further step; steps in flight end as usual."""
        self._executor.stop(reason)

    def check_running(self) -> None:
        """Raise Interrupted if the run is stopping."""
        self._executor.check_running()

    def abort(self) -> None:
        """Break off the steps in flight."""
        self._providers.abort()

    # -- one resource --

    def _register_default_provider(self, type_: str, inputs: Properties) -> State:
        urn = self.urn(type_, "default", "")
        return self.register(Goal(state=State({"urn": urn, "type": type_, "custom": True, "inputs": inputs})))

    def _claim(self, goal: Goal) -> State | None:
        try:
            return self._registry.claim(goal)
        except ClaimError as error:
            self._executor.refuse("register", goal.state, str(error))

    def _deploy(self, goal: Goal, old: State | None) -> None:
        """Create, replace, update or keep one resource."""
        new, declared = goal.state, goal.state["inputs"]
        if old is None:
            self._planner.check(new, {}, declared)
            self._operations.create(new)
        elif self._registry.is_deleted(old.urn):
            self._planner.check(new, {}, declared)
            self._operations.create_replacement(new, old)
        else:
            self._change(goal, old, declared)

    def _change(self, goal: Goal, old: State, declared: Properties) -> None:
        new = goal.state
        new |= {key: old[key] for key in ("created", "modified") if key in old}
        inputs = values.keep_ignored(declared, old["inputs"], new["ignoreChanges"])
        self._planner.check(new, old["inputs"], inputs)
        diff = self._planner.diff(old, new)
        if diff.replaces or old["pendingReplacement"]:
            self._replacement.replace(goal, old, declared, diff)
        elif diff.changes:
            self._operations.update(old, new)
        else:
            self._operations.keep(old, new)
