"""Rolling updates: the instances of one fleet are updated in batches, while the others have its traffic.

Each batch is drained, gets the version, is verified, gets traffic again, and bakes like a step of the other strategies.
Any error restores the updated instances, batch by batch.
"""

from __future__ import annotations

import functools

from observatory.delivery.bake import Comparison, Subject, mark_exercised
from observatory.delivery.environment import Instances
from observatory.delivery.errors import StepFailedError
from observatory.delivery.fenced_rollout import FencedRollout, unless_aborted
from observatory.delivery.patience import attempt
from observatory.delivery.retrying import POLL_S
from observatory.delivery.rolling_progress import Batch, RollingProgress, without
from observatory.delivery.run import Run
from observatory.documents.rollout import RolloutDocument
from observatory.waiting import wait_until


class RollingUpdate(Run):
    """A rolling update under way."""

    def __init__(self, rollout: FencedRollout, instances: Instances) -> None:
        super().__init__(rollout)
        self._instances, self._progress = instances, RollingProgress(rollout, instances)

    def _deploy(self) -> None:
        self._resume()
        while batch := self._progress.next_batch:
            self._update(batch)
            self._bake()
        self._promote()

    def roll_back(self, reason: str) -> RolloutDocument:
        """Restore the updated instances batch by batch, those that are not ready first."""
        self._rollout.ignore_lock()
        self._write_for_rollback(self._progress.restoring, status="rolling-back", reason=reason)
        self._rollout.record("rollback", reason=reason)
        self._progress.drop_removed()
        self._converge_for_rollback()
        while batch := self._progress.next_rollback_batch:
            self._restore_with_retries(batch)
        self._converge_for_rollback()
        self._write_for_rollback(self._progress.restored, status="rolled-back", request=None)
        self._rollout.record("rolled-back", reason=reason)
        self._check_restored(f"all instances of {self._deployment.source} run the previous version ({reason})")
        return self._rollout.document

    def _resume(self) -> None:
        """Prepare for the next batch, also after a process that died at any point of an earlier one."""
        self._progress.drop_removed()
        self._rollout.converge()
        self._rollout.update_deployment(status="shifting")
        if self._progress.updated and not self._progress.draining:
            self._bake()  # how long the last batch has baked is unknown

    def _update(self, batch: Batch) -> None:
        """Replace a batch by the new version."""
        target = self._deployment.target
        self._drain(batch)
        self._progress.mark_updated(batch)
        self._rollout.record("install", fleet=target, instances=batch)
        attempt(self._rollout, lambda: self._instances.install(target, batch))
        self._rollout.record("verify", fleet=target, instances=batch)
        attempt(self._rollout, lambda: self._instances.verify(target, batch))
        mark_exercised(self._rollout)
        self._return_traffic(batch)
        self._rollout.record("moved", fleet=target, instances=batch)

    def _restore(self, batch: Batch) -> None:
        """Replace a batch by the old version."""
        target, before = self._deployment.target, self._deployment.before
        self._drain(batch)
        self._progress.mark_restored(batch)
        self._rollout.record("install", fleet=target, instances=batch, version=before.version)
        self._instances.install(target, batch)
        self._return_traffic(batch)
        self._rollout.record("moved-back", fleet=target, instances=batch)

    def _restore_with_retries(self, batch: Batch) -> None:
        """Restore a batch; without that, users stay on instances that failed."""
        self._retry_for_rollback(
            lambda: self._restore(batch),
            f"{', '.join(batch)} cannot be rolled back: {{}}. Repair the cause, then run `observatory rollback "
            "--method blue-green` to continue",
        )

    def _promote(self) -> None:
        def promoted(document: RolloutDocument) -> RolloutDocument:
            return self._progress.promoted(unless_aborted(document))

        now = self._environment.clock.wall()
        self._rollout.update(promoted, status="promoted", promoted=now, request=None)
        self._rollout.record("promoted", fleet=self._deployment.target)

    def _drain(self, batch: Batch) -> None:
        """Stop new requests to a batch, and wait for those in flight."""
        if self._progress.draining != batch:
            self._check_capacity_without(batch)
            self._progress.start_draining(batch)
        self._rollout.converge()
        self._rollout.record("drain", fleet=self._deployment.target, instances=batch)
        self._instances.drain(self._deployment.target, batch)

    def _return_traffic(self, batch: Batch) -> None:
        self._wait_for(batch)
        self._progress.end_draining()
        self._rollout.converge()

    def _check_capacity_without(self, batch: Batch) -> None:
        """Check that the other instances can take the traffic of a batch.

        In an update all others must be ready. In a rollback as many as a batch leaves must be. A batch with no ready
        instance may always be drained: it has no traffic. So may the only one with ready instances while the others
        respond and are not ready: it may hold what they need, such as the database's connections.
        """
        others = without(self._progress.instances, batch)
        if self._deployment.status != "rolling-back":
            return self._wait_for(others)
        required = len(self._progress.instances) - self._progress.batch_size
        ready = self._progress.ready(others)
        held = not ready and self._instances.respond(self._deployment.target, others)
        if self._progress.ready(batch) and len(ready) < required and not held:
            raise StepFailedError(
                f"{len(ready)} of {', '.join(others)} are ready, {required} are required to drain {', '.join(batch)}"
            )
        return None

    def _wait_for(self, instances: Batch) -> None:
        target, timeout_s = self._deployment.target, self._deployment.health_check_s
        clock = self._environment.clock
        ready = functools.partial(self._instances.ready, target, instances)
        if not wait_until(ready, timeout_s, interval_s=POLL_S, clock=clock):
            raise StepFailedError(f"not all of {', '.join(instances)} were ready within {timeout_s:g} s")

    def _return_all_traffic(self) -> None:
        """Do nothing: the weights are those before the update."""

    def _stop_target(self) -> tuple[str, ...]:
        """Stop nothing: the target has the traffic."""
        return ()

    def _restore_target(self) -> None:
        """Do nothing: the rollback restored every instance."""

    def _wait_until_ready(self) -> None:
        self._wait_for(self._progress.instances)

    def _comparison(self) -> Comparison:
        """Compare updated with pending instances."""
        target, updated, pending = self._deployment.target, self._progress.updated, self._progress.pending
        return Comparison(
            new=Subject(fleet=target, instances=updated),
            old=Subject(fleet=target, instances=pending) if pending else None,
        )
