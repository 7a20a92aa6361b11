"""How far a rolling update is: which instances of the fleet run the new version, and which are draining.

The rollout document has it, and the fleet's instances are counted as they are now. An instance is recorded as draining
before the balancer is changed, and as updated only after it has drained: so an `up` in the middle of an update changes
no instance that has traffic.
"""

from __future__ import annotations

from collections.abc import Callable

from observatory.delivery.environment import Instances
from observatory.delivery.fenced_rollout import FencedRollout
from observatory.documents.rollout import Rolling, RolloutDocument

Batch = tuple[str, ...]


class RollingProgress:
    """The progress of a rolling update, read from and written to its rollout document."""

    def __init__(self, rollout: FencedRollout, instances: Instances) -> None:
        self._rollout, self._instances = rollout, instances
        self._fleet = rollout.deployment.target

    @property
    def batch_size(self) -> int:
        """Instances that are updated at a time."""
        return self._rollout.deployment.batch_size or 1

    @property
    def instances(self) -> Batch:
        """All instances of the fleet, always in the same order."""
        return self._instances.names(self._fleet)

    @property
    def updated(self) -> Batch:
        """The instances that run the new version."""
        return tuple(name for name in self.instances if name in self._rolling.instances)

    @property
    def pending(self) -> Batch:
        """The instances that run the old version."""
        return without(self.instances, self._rolling.instances)

    @property
    def draining(self) -> Batch:
        """The batch that gets no new requests."""
        return self._rolling.draining

    @property
    def next_batch(self) -> Batch:
        """The batch to update next: the draining one, which an interrupted update left, or pending instances."""
        return self.draining or self.pending[: self.batch_size]

    @property
    def next_rollback_batch(self) -> Batch:
        """The batch to restore next: the draining one, or updated instances, those that are not ready first."""
        return self.draining or self._updated_unready_first()[: self.batch_size]

    def ready(self, instances: Batch) -> Batch:
        """Return those of `instances` that are ready."""
        return tuple(name for name in instances if self._instances.ready(self._fleet, (name,)))

    def start_draining(self, batch: Batch) -> None:
        """Record that a batch gets no new requests."""
        self._change(lambda _rolling: {"draining": batch})

    def end_draining(self) -> None:
        """Record that the batch gets requests again."""
        self._change(lambda _rolling: {"draining": ()})

    def mark_updated(self, batch: Batch) -> None:
        """Record that a drained batch runs the new version."""
        self._change(lambda rolling: {"instances": (*rolling.instances, *without(batch, rolling.instances))})

    def mark_restored(self, batch: Batch) -> None:
        """Record that a drained batch runs the old version again."""
        self._change(lambda rolling: {"instances": without(rolling.instances, batch)})

    def drop_removed(self) -> None:
        """Drop instances that no longer exist: the fleet was made smaller, or a machine was replaced."""
        names, rolling = self.instances, self._rolling
        kept = {
            "instances": tuple(name for name in rolling.instances if name in names),
            "draining": tuple(name for name in rolling.draining if name in names),
        }
        if (rolling.instances, rolling.draining) != (kept["instances"], kept["draining"]):
            self._change(lambda _rolling: kept)

    def promoted(self, document: RolloutDocument) -> RolloutDocument:
        """Return a document where the new version is the fleet's own."""
        new = self._rollout.deployment
        return document.with_fleet(self._fleet, version=new.version, sha256=new.sha256, rolling=None)

    def restoring(self, document: RolloutDocument) -> RolloutDocument:
        """Return a document where the old version is the fleet's own, and the updated instances are still to restore.

        After the promotion all instances are.
        """
        before = self._rollout.deployment.before
        all_updated = self._rolling.model_copy(update={"instances": self.instances})
        rolling = document.fleet(self._fleet).rolling or all_updated
        return document.with_fleet(self._fleet, version=before.version, sha256=before.sha256, rolling=rolling)

    def restored(self, document: RolloutDocument) -> RolloutDocument:
        """Return a document without a rolling update."""
        return document.with_fleet(self._fleet, rolling=None)

    @property
    def _rolling(self) -> Rolling:
        new = self._rollout.deployment
        found = self._rollout.document.fleet(self._fleet).rolling
        return found or Rolling(version=new.version, sha256=new.sha256)

    def _updated_unready_first(self) -> Batch:
        updated = self.updated
        unready = without(updated, self.ready(updated))
        return (*unready, *without(updated, unready))

    def _change(self, change: Callable[[Rolling], dict[str, Batch]]) -> None:
        def changed(document: RolloutDocument) -> RolloutDocument:
            rolling = document.fleet(self._fleet).rolling or self._rolling
            return document.with_fleet(self._fleet, rolling=rolling.model_copy(update=change(rolling)))

        self._rollout.update(changed)


def without(names: Batch, excluded: Batch) -> Batch:
    """Return `names` without those in `excluded`."""
    return tuple(name for name in names if name not in excluded)
