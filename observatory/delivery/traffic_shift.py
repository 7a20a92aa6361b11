"""Blue-green and canary deployments: the idle fleet gets the version, then the traffic, in one step or in several.

The rollout document is written before the balancer is, and the balancer always gets the newest document. So a process
that dies in between, and the one that takes over, end with the traffic weights of the document. A rollback returns the
traffic first, and writes then: neither a full disk nor a damaged document keeps users on a version that failed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from observatory.delivery.bake import Comparison, Subject, mark_exercised
from observatory.delivery.environment import BalancerError, HostsError, UnjudgedError
from observatory.delivery.errors import DeploymentPausedError, StepFailedError, TakenOverError
from observatory.delivery.fenced_rollout import unless_aborted
from observatory.delivery.patience import attempt
from observatory.delivery.retrying import retry
from observatory.delivery.run import ROLLBACK_ATTEMPTS, Run
from observatory.documents.rollout import TOTAL_WEIGHT, RolloutDocument, RolloutError, other
from observatory.interruption import delayed_signals
from observatory.waiting import wait_until

UNHEALTHY_S = 30.0  # of a source whose illness the target may be the cause of, until the target is stopped


class TrafficShift(Run):
    """A blue-green or canary deployment under way."""

    _replaced = False  # whether the target's machines are being replaced by its previous version

    def _deploy(self) -> None:
        if self._deployment.status == "preparing":
            self._prepare_target()
        for step in range(max(self._deployment.step, 0), len(self._deployment.weights)):
            self._shift(step)
            self._bake()
        self._promote()

    def roll_back(self, reason: str) -> RolloutDocument:
        """Return all traffic to the source fleet, and stop what runs on the target; nothing is evaluated before."""
        self._rollout.ignore_lock()
        with delayed_signals() as is_interrupted:  # a CI system sends a second signal soon after the first
            self._restart_silent_source(is_interrupted)
            self._return_all_traffic()
            self._write_for_rollback(self._restored, status="rolling-back", reason=reason)
            self._rollout.record("rollback", reason=reason)
            self._converge_for_rollback()
        if stopped := self._stop_target():
            self._write_for_rollback(lambda document: self._stopped(document, stopped))
            self._converge_for_rollback()  # a stopped instance is in maintenance, so that no alert fires
            self._stop_again()
        self._write_for_rollback(lambda document: document, status="rolled-back", request=None)
        self._rollout.record("rolled-back", reason=reason, weights=self._rollout.document.weights)
        self._check_restored(f"all traffic is back on {self._deployment.source} ({reason})")
        return self._rollout.document

    def _prepare_target(self) -> None:
        """Install and verify the version on the target, which has no traffic."""
        target = self._deployment.target
        self._rollout.converge()  # after accepted drift the target may have traffic
        self._rollout.record("install", fleet=target)
        self._attempt(lambda: self._environment.hosts.install(target, repair=self._deployment.emergency))
        self._rollout.record("verify", fleet=target)
        self._attempt(lambda: self._environment.hosts.verify(target))
        self._wait_while_paused()
        mark_exercised(self._rollout, status="shifting")

    def _attempt(self, work: Callable[[], None]) -> None:
        """Install or verify the version on the target; where none can be judged for long, pause before it gets traffic.

        If the source is not healthy then, the target may be the cause, and the deployment is rolled back.

        Raises:
            DeploymentPausedError: the target stays without traffic.
        """
        hosts, source, limits = self._environment.hosts, self._deployment.source, self._environment.limits

        def patience_s() -> float:
            return limits.deadline_s if hosts.healthy(source) else min(UNHEALTHY_S, limits.deadline_s)

        try:
            attempt(self._rollout, work, patience_s=patience_s)
        except UnjudgedError as error:
            if not (self._deployment.gated and hosts.healthy(source)):
                raise
            self._rollout.record("paused", reason=str(error))
            raise DeploymentPausedError(
                f"{self._deployment.version} is on {self._deployment.target} without traffic: {error}",
                remedy="Run the same command again to continue, or `observatory rollback --method blue-green`.",
            ) from error

    def _wait_while_paused(self) -> None:
        """Leave the traffic where it is while an operator pauses the deployment before its first step.

        Raises:
            StepFailedError: an operator has aborted it.
        """
        if not self._deployment.gated or self._rollout.check_request() != "pause":
            return
        self._rollout.record("paused", reason="by `observatory rollout pause`, before it gets traffic")
        wait_until(
            lambda: self._rollout.check_request() != "pause",
            interval_s=self._environment.limits.interval_s,
            clock=self._environment.clock,
        )
        self._rollout.record("continued")

    def _shift(self, step: int) -> None:
        """Give the target the traffic weight of a step."""
        self._wait_until_ready()
        target, weight = self._deployment.target, self._deployment.weights[step]
        self._rollout.update(lambda document: unless_aborted(document).with_weight(target, weight), step=step)
        self._rollout.converge()
        self._rollout.record("shift")

    def _promote(self) -> None:
        now = self._environment.clock.wall()
        self._rollout.update(unless_aborted, status="promoted", promoted=now, request=None)
        self._rollout.record("promoted", fleet=self._deployment.target)

    def _wait_until_ready(self) -> None:
        target, timeout_s, hosts = self._deployment.target, self._deployment.health_check_s, self._environment.hosts
        if not self._wait(lambda: hosts.healthy(target)):
            raise StepFailedError(f"{target} was not ready to take more traffic within {timeout_s:g} s")

    def _comparison(self) -> Comparison:
        target = self._deployment.target
        return Comparison(new=Subject(fleet=target), old=Subject(fleet=other(target)))

    def _restored(self, document: RolloutDocument) -> RolloutDocument:
        """Return the document with the target's previous version and all traffic on the source."""
        before = self._deployment.before
        restored = document.with_fleet(self._deployment.target, version=before.version, sha256=before.sha256)
        return restored.with_weight(self._deployment.source, TOTAL_WEIGHT)

    def _stopped(self, document: RolloutDocument, stopped: tuple[str, ...]) -> RolloutDocument:
        """Return the document with a stopped target, which has the version that was verified there last."""
        deployment = self._deployment
        if deployment.exercised is None:
            return document.with_fleet(deployment.target, stopped=stopped)
        return document.with_fleet(
            deployment.target, version=deployment.version, sha256=deployment.sha256, stopped=stopped
        )

    def _return_all_traffic(self) -> None:
        """Set the balancer's weights before anything is written; `_converge_for_rollback` reports a failure."""
        try:
            self._rollout.set_weights({self._deployment.source: TOTAL_WEIGHT, self._deployment.target: 0})
        except BalancerError as error:
            self._rollout.record("not-shifted", fleet=self._deployment.source, reason=str(error))

    def _stop_target(self) -> tuple[str, ...]:
        """Stop what runs on the target: it may hold what the source needs, such as the database's connections.

        If the source does not respond the target stays, the only fleet that could have traffic.
        """
        hosts, source, target = self._environment.hosts, self._deployment.source, self._deployment.target
        try:
            if reason := hosts.silent(source):
                self._rollout.record("not-stopped", fleet=target, reason=f"{source} does not respond: {reason}")
                return ()
            stopped = hosts.stop(target, patient=lambda: hosts.healthy(source))
        except HostsError as error:
            self._rollout.record("not-stopped", fleet=target, reason=str(error))
            return ()
        self._rollout.record("stopped", fleet=target)
        self._replaced = not stopped
        return stopped

    def _stop_again(self) -> None:
        """Stop what an `up` that did not know of the rollback may have started before the document had `stopped`."""
        with suppress(HostsError):
            self._environment.hosts.stop(self._deployment.target, patient=lambda: False)

    def _restart_silent_source(self, is_interrupted: Callable[[], bool]) -> None:
        """Restart the source if no instance of it responds, and wait until one does or the rollback is interrupted."""
        hosts, source = self._environment.hosts, self._deployment.source
        try:
            if not (reason := hosts.silent(source)):
                return
            self._rollout.record("restart", fleet=source, reason=reason)
            hosts.restart(source)
            self._wait(lambda: is_interrupted() or not hosts.silent(source))
        except HostsError as error:
            self._rollout.record("not-restarted", fleet=source, reason=str(error))

    def _restore_target(self) -> None:
        """Install the target's previous version; where that fails, the next `up` installs it.

        A target that was stopped before stays stopped. Machines that were replaced have the version.
        """
        target, before = self._deployment.target, self._deployment.before
        if before.stopped or self._replaced:
            return
        try:
            self._rollout.update(
                lambda document: document.with_fleet(target, version=before.version, sha256=before.sha256, stopped=())
            )
            retry(self._rollout.converge, BalancerError, clock=self._environment.clock, attempts=ROLLBACK_ATTEMPTS)
            self._environment.hosts.install(target)
        except (HostsError, BalancerError, RolloutError, TakenOverError) as error:
            self._rollout.record("not-restored", fleet=target, reason=str(error))
