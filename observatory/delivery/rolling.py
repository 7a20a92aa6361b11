"""A rolling update: the instances of one fleet by turns, a batch at a time, while the others serve.

Each batch is taken out of the balancer, finishes what it has in flight, gets the release, is exercised, and comes back;
then it is watched like a step of the other strategies. The document names a batch as out before the balancer is told,
and as moved only after it was drained: so whoever brings the stack to what the document says, a plain `up` in the
middle included, never touches an instance that serves. Any trouble takes the moved ones back in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from observatory.delivery.deployment import Run, converge
from observatory.delivery.environment import BalancerError, HostsError, Instances, Sample
from observatory.delivery.errors import StepFailedError
from observatory.documents.rollout import Rolling, RolloutDocument

READY_PAUSE_S = 1.0  # an instance that misses one look is not yet lost

Batch = tuple[str, ...]


class RollingRun(Run):
    """A rolling update under way."""

    def _forward(self) -> RolloutDocument:
        self._forget_gone()
        self._document = self._mine(
            converge(self._environment)
        )  # it may have been killed between document and balancer
        self._change(status="shifting")
        if self._moved and not self._rolling.draining:
            self._bake()  # it was killed here, and nobody knows how long the batch was watched
        while batch := self._rolling.draining or self._unmoved[: self._batch_size]:
            self._move(batch)
            self._bake()
        self._write(self._adopted, status="promoted", request=None)
        self._record("promoted", fleet=self._deployment.target)
        return self._document

    def roll_back(self, reason: str) -> RolloutDocument:
        """Bring the moved instances back to what they ran before, batch by batch, and see that the fleet serves."""
        self._write(self._going_back, status="rolling-back", reason=reason)
        self._record("rollback", reason=reason)
        self._forget_gone()
        self._settle()
        while batch := self._rolling.draining or self._worst_first[: self._batch_size]:
            self._persist(batch)
        self._settle()
        self._write(self._without_rolling, status="rolled-back", request=None)
        self._record("rolled-back", reason=reason)
        self._must_serve_again(f"every instance of {self._deployment.source} is back ({reason})")
        return self._document

    def _restore_target(self) -> None:
        """Do nothing: the way back did it, instance by instance."""

    def _move(self, batch: Batch) -> None:
        """Bring the release to a batch."""
        target = self._deployment.target
        self._take_out(batch)
        self._roll(lambda rolling: {"instances": _with(rolling.instances, batch)})
        self._record("install", fleet=target, instances=batch)
        self._instances.install(target, batch)
        self._record("verify", fleet=target, instances=batch)
        self._instances.verify(target, batch)
        self._change(exercised=self._environment.clock.now())
        self._bring_in(batch)
        self._record("moved", fleet=target, instances=batch)

    def _persist(self, batch: Batch) -> None:
        """Bring a batch back; giving up here leaves users on instances that were found bad."""
        self._insist(
            lambda: self._move_back(batch),
            f"{', '.join(batch)} cannot be brought back: {{}}. Mend that, and `observatory rollback --method "
            "blue-green` goes on",
            *(BalancerError, HostsError, StepFailedError),
        )

    def _move_back(self, batch: Batch) -> None:
        target = self._deployment.target
        self._take_out(batch)
        self._roll(lambda rolling: {"instances": _without(rolling.instances, batch)})
        self._record("install", fleet=target, instances=batch, version=self._deployment.before.version)
        self._instances.install(target, batch)
        self._bring_in(batch)
        self._record("moved-back", fleet=target, instances=batch)

    def _take_out(self, batch: Batch) -> None:
        """Send a batch nothing new, and wait until it has finished what it had."""
        if self._rolling.draining != batch:
            self._must_leave_enough(batch)
            self._roll(lambda _rolling: {"draining": batch})
        self._document = self._mine(converge(self._environment))
        self._record("drain", fleet=self._deployment.target, instances=batch)
        self._instances.drain(self._deployment.target, batch)

    def _bring_in(self, batch: Batch) -> None:
        self._wait_ready(batch)
        self._roll(lambda _rolling: {"draining": ()})
        self._document = self._mine(converge(self._environment))

    def _must_leave_enough(self, batch: Batch) -> None:
        """Refuse to take out a batch that the others cannot serve for.

        Forward every other instance must be ready; on the way back as many as a batch leaves, and instances that are
        not ready serve nobody: they may always go.
        """
        others = _without(self._all, batch)
        if self._deployment.status != "rolling-back":
            return self._wait_ready(others)
        if self._ready(batch) and len(self._ready(others)) < len(self._all) - self._batch_size:
            raise StepFailedError(f"of {', '.join(others)} too few are ready to serve without {', '.join(batch)}")
        return None

    def _wait_ready(self, instances: Batch) -> None:
        clock = self._environment.clock
        deadline = clock.now() + self._deployment.health_check_s
        while not self._instances.ready(self._deployment.target, instances):
            if clock.now() >= deadline:
                raise StepFailedError(f"of {', '.join(instances)} not every one is ready")
            clock.sleep(READY_PAUSE_S)

    def _must_be_healthy(self) -> None:
        self._wait_ready(self._all)

    def _samples(self) -> tuple[Sample | None, Sample | None]:
        """Compare the moved instances with those that still run the old release; there are none after the last."""
        target, others = self._deployment.target, self._unmoved
        return self._sample(target, self._moved), self._sample(target, others) if others else None

    def _probes(self) -> int:
        """Ask for as many that the moved instances' share of them is enough."""
        return math.ceil(super()._probes() * len(self._all) / len(self._moved))

    @property
    def _instances(self) -> Instances:
        instances = self._environment.instances
        assert instances is not None  # noqa: S101 - no rolling update begins without
        return instances

    @property
    def _batch_size(self) -> int:
        return self._deployment.batch_size or 1

    @property
    def _all(self) -> Batch:
        return self._instances.names(self._deployment.target)

    @property
    def _rolling(self) -> Rolling:
        """How far the update is; none is under way where the document has no more of it."""
        found = self._document.fleet(self._deployment.target).rolling
        return found or Rolling(version=self._deployment.version, sha256=self._deployment.sha256)

    @property
    def _moved(self) -> Batch:
        return tuple(name for name in self._all if name in self._rolling.instances)

    @property
    def _unmoved(self) -> Batch:
        return _without(self._all, self._rolling.instances)

    @property
    def _worst_first(self) -> Batch:
        """The moved instances, those that do not serve anyway before the others."""
        moved = self._moved
        unready = _without(moved, self._ready(moved))
        return (*unready, *_without(moved, unready))

    def _ready(self, instances: Batch) -> Batch:
        target = self._deployment.target
        return tuple(name for name in instances if self._instances.ready(target, (name,)))

    def _forget_gone(self) -> None:
        """Drop the names of instances that are no more, since the fleet got smaller or a machine was replaced."""
        there = self._all
        kept = {key: tuple(n for n in getattr(self._rolling, key) if n in there) for key in ("instances", "draining")}
        if any(kept[key] != getattr(self._rolling, key) for key in kept):
            self._roll(lambda _rolling: kept)

    def _roll(self, change: Callable[[Rolling], dict[str, Batch]]) -> None:
        """Write how far the update is."""
        target = self._deployment.target

        def changed(current: RolloutDocument) -> RolloutDocument:
            rolling = current.fleet(target).rolling or self._rolling
            return current.with_fleet(target, rolling=rolling.model_copy(update=change(rolling)))

        self._write(changed)

    def _adopted(self, current: RolloutDocument) -> RolloutDocument:
        """Return the document where the fleet's own release is the new one."""
        new = self._deployment
        return current.with_fleet(new.target, version=new.version, sha256=new.sha256, rolling=None)

    def _going_back(self, current: RolloutDocument) -> RolloutDocument:
        """Return the document where the fleet's own release is the old one again; a promoted one is all moved."""
        target, before = self._deployment.target, self._deployment.before
        all_moved = self._rolling.model_copy(update={"instances": self._all})
        rolling = current.fleet(target).rolling or all_moved
        return current.with_fleet(target, version=before.version, sha256=before.sha256, rolling=rolling)

    def _without_rolling(self, current: RolloutDocument) -> RolloutDocument:
        return current.with_fleet(self._deployment.target, rolling=None)


def _with(names: Batch, more: Batch) -> Batch:
    return (*names, *_without(more, names))


def _without(names: Batch, fewer: Batch) -> Batch:
    return tuple(name for name in names if name not in fewer)
