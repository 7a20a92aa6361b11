"""Decides what a resource needs: checks its declared inputs and compares them with its old state."""

from __future__ import annotations

from dataclasses import replace

from observatory.engines.embedded import values
from observatory.engines.embedded.deployment.executor import StepExecutor
from observatory.engines.embedded.deployment.provider_pool import ProviderPool
from observatory.engines.embedded.deployment.registry import ResourceRegistry
from observatory.engines.embedded.provider import Diff
from observatory.engines.embedded.snapshot import State
from observatory.engines.embedded.values import Properties, differences, reveal


class Planner:
    """Gets the differences from the providers, and applies the resource's options to them. Changes nothing."""

    def __init__(self, registry: ResourceRegistry, executor: StepExecutor, providers: ProviderPool) -> None:
        self._registry, self._executor, self._providers = registry, executor, providers

    def check(self, new: State, olds: Properties, news: Properties) -> None:
        """Set the resource's inputs to the checked ones.

        Args:
            new: The resource.
            olds: Its old inputs, empty for a creation.
            news: Its declared inputs.

        Raises:
            StepFailed: the provider failed, or refused the inputs.
        """
        new["inputs"] = news
        if not new["custom"]:
            return
        inputs, failures = self._providers.call("check", new, lambda p: p.check(new.urn, reveal(olds), reveal(news)))
        if failures:
            reasons = (f"{name}: {reason}" if name else reason for name, reason in failures)
            self._executor.refuse("check", new, "; ".join(reasons))
        new["inputs"] = values.keep_secret(inputs, news)

    def diff(self, old: State, new: State) -> Diff:
        """Return how the checked inputs differ from the old state, and whether that replaces the resource."""
        if reason := self._forced_replacement(old, new):
            return Diff(changes=True, replaces=(reason,))
        if not new["custom"]:
            return Diff(changes=reveal(old["inputs"]) != reveal(new["inputs"]))
        return self.compare(old, new["inputs"], new)

    def compare(self, old: State, news: Properties, options: State) -> Diff:
        """Get the difference from the provider, then apply the options.

        Args:
            old: The resource as it is.
            news: The inputs to compare with.
            options: The state whose ``ignoreChanges`` and ``replaceOnChanges`` apply.

        Raises:
            StepFailed: the provider failed.
        """
        olds = reveal(old["inputs"]), reveal(old["outputs"])
        diff: Diff = self._providers.call("diff", options, lambda p: p.diff(old.urn, old["id"], *olds, reveal(news)))
        changed, changes = diff.changed, diff.changes
        if changes is None:
            kept = values.keep_ignored(news, old["inputs"], options["ignoreChanges"])
            changed = tuple(change.path for change in differences(old["inputs"], kept))
            changes = bool(changed)
        if not changes:
            return Diff(changes=False)
        patterns = [values.parse_path(path) for path in options["replaceOnChanges"]]
        forced = [path for path in changed if any(values.path_covers(p, values.parse_path(path)) for p in patterns)]
        return replace(diff, changes=True, replaces=tuple(dict.fromkeys((*diff.replaces, *forced))))

    def _forced_replacement(self, old: State, new: State) -> str:
        """Return the property that forces a replacement without the provider's opinion; empty if none does."""
        reasons = {
            "provider": bool(old["provider"]) != bool(new["provider"]),
            "id": old["taint"],
            "replaceWith": self._registry.any_replaced(new["replaceWith"]),
            "deletedWith": self._registry.any_replaced([new["deletedWith"]]),
        }
        return next((name for name, holds in reasons.items() if holds), "")
