"""Blue-green and canary deployments: the idle fleet gets the version, then the traffic, in one step or in several.

The rollout document is written before the balancer is, and the balancer always gets the newest document. So a process
that dies in between, and the one that takes over, end with the traffic weights of the document.
"""

from __future__ import annotations

from observatory.delivery.bake import Comparison, Subject
from observatory.delivery.environment import HostsError
from observatory.delivery.errors import StepFailedError
from observatory.delivery.retrying import POLL_S
from observatory.delivery.run import Run
from observatory.documents.rollout import TOTAL_WEIGHT, RolloutDocument, other
from observatory.waiting import wait_until


class TrafficShift(Run):
    """A blue-green or canary deployment under way."""

    def _deploy(self) -> None:
        if self._deployment.status == "preparing":
            self._prepare_target()
        for step in range(max(self._deployment.step, 0), len(self._deployment.weights)):
            self._shift(step)
            self._bake()
        self._promote()

    def roll_back(self, reason: str) -> RolloutDocument:
        """Return all traffic to the source fleet; the document has the target's previous version again."""
        self._rollout.update(self._restored, status="rolling-back", reason=reason)
        self._rollout.record("rollback", reason=reason)
        self._converge_for_rollback()
        self._rollout.update_deployment(status="rolled-back", request=None)
        self._rollout.record("rolled-back", reason=reason, weights=self._rollout.document.weights)
        self._check_restored(f"all traffic is back on {self._deployment.source} ({reason})")
        return self._rollout.document

    def _prepare_target(self) -> None:
        """Install and verify the version on the target, which has no traffic."""
        target = self._deployment.target
        self._rollout.converge()  # after accepted drift the target may have traffic
        self._rollout.record("install", fleet=target)
        self._environment.hosts.install(target)
        self._rollout.record("verify", fleet=target)
        self._environment.hosts.verify(target)
        self._rollout.update_deployment(status="shifting", exercised=self._environment.clock.now())

    def _shift(self, step: int) -> None:
        """Give the target the traffic weight of a step."""
        self._wait_until_ready()
        target, weight = self._deployment.target, self._deployment.weights[step]
        self._rollout.update(lambda document: document.with_weight(target, weight), step=step)
        self._rollout.converge()
        self._rollout.record("shift")

    def _promote(self) -> None:
        self._rollout.update_deployment(status="promoted", request=None)
        self._rollout.record("promoted", fleet=self._deployment.target)

    def _wait_until_ready(self) -> None:
        target, timeout_s = self._deployment.target, self._deployment.health_check_s
        hosts, clock = self._environment.hosts, self._environment.clock
        if not wait_until(lambda: hosts.healthy(target), timeout_s=timeout_s, interval_s=POLL_S, clock=clock):
            raise StepFailedError(f"{target} was not ready to take more traffic within {timeout_s:g} s")

    def _comparison(self) -> Comparison:
        target = self._deployment.target
        return Comparison(
            new=Subject(fleet=target),
            old=Subject(fleet=other(target)),
            probes=self._environment.limits.minimum_requests,
        )

    def _restored(self, document: RolloutDocument) -> RolloutDocument:
        """Return the document with the target's previous version and all traffic on the source."""
        before = self._deployment.before
        restored = document.with_fleet(self._deployment.target, version=before.version, sha256=before.sha256)
        return restored.with_weight(self._deployment.source, TOTAL_WEIGHT)

    def _restore_target(self) -> None:
        """Install the target's previous version; where that fails, the next `up` installs it."""
        target = self._deployment.target
        try:
            self._environment.hosts.install(target)
        except HostsError as error:
            self._rollout.record("not-restored", fleet=target, reason=str(error))
