"""Creates, updates, keeps and deletes one resource, each as a step. A preview plans the same steps without the work."""

from __future__ import annotations

from dataclasses import replace

from observatory.engines.embedded import values
from observatory.engines.embedded.backend import now
from observatory.engines.embedded.deployment.executor import StepExecutor, step_for
from observatory.engines.embedded.deployment.provider_pool import ProviderPool
from observatory.engines.embedded.deployment.registry import ResourceRegistry
from observatory.engines.embedded.events import Operation
from observatory.engines.embedded.provider import PROVIDER_TYPE
from observatory.engines.embedded.snapshot import State
from observatory.engines.embedded.values import UNKNOWN, Properties, reveal


class Operations:
    """The steps on one resource. Each raises StepFailed if the provider fails, and Interrupted if the run is stopping.

    Attributes:
        preview: Whether to plan only.
    """

    def __init__(
        self, registry: ResourceRegistry, executor: StepExecutor, providers: ProviderPool, *, preview: bool
    ) -> None:
        self.preview = preview
        self._registry, self._executor, self._providers = registry, executor, providers

    def create(self, new: State) -> None:
        """Create a resource."""
        self._executor.perform(step_for("create", new, {}), new, lambda: self._set_created(new), new=new)

    def create_replacement(self, new: State, old: State, replaces: tuple[str, ...] = ()) -> None:
        """Create a resource in place of an old one.

        An old one that is not deleted yet is marked to be deleted at the end of the run.

        Args:
            new: The resource to create.
            old: The state that it replaces.
            replaces: The properties that force the replacement.
        """
        creation = step_for("create-replacement", new)
        replacement = replace(step_for("replace", new, old["inputs"]), replaces=replaces)
        if old["pendingReplacement"]:
            self._executor.report("done", replacement)
            self._executor.perform(creation, new, lambda: self._set_created(new), old=old, new=new)
        else:
            self._executor.perform(creation, new, lambda: self._set_created(new), old=old, new=new, mark="delete")
            self._executor.report("done", replacement)

    def update(self, old: State, new: State) -> None:
        """Update a resource in place."""

        def work() -> None:
            new["id"] = old["id"]
            if new["custom"]:
                set_outputs(new, self._updated_outputs(old, new))
                new["modified"] = now()

        self._executor.perform(step_for("update", new, old["inputs"]), new, work, old=old, new=new)

    def keep(self, old: State, new: State) -> None:
        """Keep a resource as it is."""

        def work() -> None:
            new.update({key: value for key, value in old.items() if key not in new}, id=old["id"])
            set_outputs(new, dict(old["outputs"]))

        self._executor.perform(step_for("same", new), new, work, old=old, new=new)

    def delete(self, state: State, operation: Operation, mark: str = "") -> None:
        """Delete a resource.

        Args:
            state: The resource.
            operation: What the step is called: ``delete`` or ``delete-replaced``.
            mark: The flag that the resource keeps in the state instead of leaving it, see ``Snapshot.end``.
        """

        def work() -> None:
            if self.preview or not state.is_managed or state["retainOnDelete"]:
                return
            if not self._registry.is_deleted(state["deletedWith"]):
                provider, outputs = self._providers.configured(state), reveal(state["outputs"])
                provider.delete(state.urn, state["id"], outputs, _timeout(state, "delete"))

        self._executor.perform(step_for(operation, state), state, work, old=state, mark=mark)

    def forget(self, state: State) -> None:
        """Drop a resource from the state that was deleted before, for a replacement that did not happen."""
        self._executor.perform(step_for("remove-pending-replace", state), state, lambda: None, old=state)

    def _set_created(self, new: State) -> None:
        if new["custom"]:
            new["id"], outputs = self._create(new)
            set_outputs(new, outputs)
        new["created"] = new["modified"] = now()

    def _create(self, new: State) -> tuple[str, Properties]:
        if self.preview:
            return UNKNOWN if new.type.startswith(PROVIDER_TYPE) else "", dict(new["inputs"])
        provider = self._providers.configured(new)
        return provider.create(new.urn, reveal(new["inputs"]), _timeout(new, "create"))

    def _updated_outputs(self, old: State, new: State) -> Properties:
        if self.preview:
            return dict(new["inputs"])
        olds, news = reveal(old["outputs"]), reveal(new["inputs"])
        provider = self._providers.configured(new)
        return provider.update(new.urn, old["id"], olds, news, _timeout(new, "update"))


def set_outputs(state: State, outputs: Properties) -> None:
    """Set the outputs that a provider returned, and mark those that must be secret."""
    state["outputs"] = values.keep_secret(outputs, state["inputs"])
    for name in state["additionalSecretOutputs"]:
        if name in outputs and not values.is_secret(outputs[name]):
            outputs[name] = values.make_secret(outputs[name])


def _timeout(state: State, operation: str) -> float:
    """Return the resource's custom timeout in seconds, 0 for the provider's own."""
    return float(state["customTimeouts"].get(operation, 0))
