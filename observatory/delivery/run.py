"""What every strategy has in common: a run ends promoted, or rolled back on any error, interrupts included."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from observatory.delivery.bake import Bake, Comparison
from observatory.delivery.convergence import converge, traffic_shares
from observatory.delivery.environment import BalancerError, HostsError
from observatory.delivery.errors import (
    DeploymentPausedError,
    RollbackFailedError,
    RolledBackError,
    StepFailedError,
    TakenOverError,
)
from observatory.delivery.fenced_rollout import FencedRollout
from observatory.delivery.retrying import POLL_S, retry
from observatory.documents.rollout import Deployment, RolloutDocument, RolloutError
from observatory.waiting import wait_until

ROLLBACK_ATTEMPTS = 5  # of each action that a rollback cannot do without


class Run(ABC):
    """A deployment under way, started by this process or taken over from another."""

    def __init__(self, rollout: FencedRollout) -> None:
        self._rollout, self._environment, self._baking = rollout, rollout.environment, Bake(rollout)

    @property
    def _deployment(self) -> Deployment:
        return self._rollout.deployment

    def run(self) -> RolloutDocument:
        """Continue from the document's status to the promotion, with the target's alerts silenced.

        Raises:
            RolledBackError: a step failed, and the deployment was rolled back.
            RollbackFailedError: a step failed, and so did the rollback.
            DeploymentPausedError: the gates had no verdict for too long.
            TakenOverError: another deployment or rollback took over.
            KeyboardInterrupt: interrupted, and rolled back.
        """
        with self._environment.silences.moving(self._deployment.id, self._deployment.target):
            if self._deployment.status == "rolling-back":
                self.roll_back(self._deployment.reason or "an earlier rollback was interrupted")
                raise RolledBackError(f"rolled back: {self._deployment.reason}")
            try:
                return self._deploy_or_roll_back()
            except TakenOverError:
                self._yield_to_successor()
                raise

    def _deploy_or_roll_back(self) -> RolloutDocument:
        try:
            self._deploy()
        except (TakenOverError, DeploymentPausedError):
            raise
        except KeyboardInterrupt:
            self.roll_back("interrupted")
            raise
        except Exception as error:
            self.roll_back(str(error))
            self._restore_target()
            raise RolledBackError(f"rolled back: {error}") from error
        return self._rollout.document

    @abstractmethod
    def _deploy(self) -> None:
        """Continue from the document's status to the promotion; any error rolls back."""

    @abstractmethod
    def roll_back(self, reason: str) -> RolloutDocument:
        """Restore what was live before the deployment, check that it is healthy, and return the document.

        Raises:
            RollbackFailedError: that failed, or the restored fleet is not healthy.
            TakenOverError: another deployment or rollback took over.
        """

    @abstractmethod
    def _restore_target(self) -> None:
        """Install the target's previous version again after the rollback; never raises HostsError."""

    @abstractmethod
    def _wait_until_ready(self) -> None:
        """Wait until the target can take more traffic; raises StepFailedError."""

    @abstractmethod
    def _comparison(self) -> Comparison:
        """Return what the gates compare in this step."""

    def _yield_to_successor(self) -> None:
        """Undo what this process did after it was taken over: set weights, or start a fleet that is stopped by now."""
        target, hosts, clock = self._deployment.target, self._environment.hosts, self._environment.clock

        def undo() -> None:
            if converge(self._environment).fleet(target).stopped:
                hosts.stop(target, patient=lambda: True)

        with suppress(BalancerError, HostsError, RolloutError):
            retry(undo, BalancerError, HostsError, clock=clock, attempts=ROLLBACK_ATTEMPTS)

    def _bake(self) -> None:
        """Evaluate the step; without gates it suffices that the target is ready."""
        if self._deployment.gated:
            self._baking.step(self._comparison())
        else:
            self._wait_until_ready()

    def _converge_for_rollback(self) -> None:
        """Apply the document to the balancer; without that, users stay on a version that failed."""
        self._retry_for_rollback(
            self._rollout.converge,
            "the balancer did not accept the rollback: {}. The rollout document has it: run `observatory up`, or "
            "`observatory rollback --method blue-green --emergency`, to apply it",
        )

    def _write_for_rollback(self, change: Callable[[RolloutDocument], RolloutDocument], **deployment: Any) -> None:
        """Change the document as `FencedRollout.update` does.

        Raises:
            RollbackFailedError: the document cannot be written; the message has the traffic weights.
        """
        try:
            self._rollout.update(change, **deployment)
        except RolloutError as error:
            self.rescue(error)

    def rescue(self, error: RolloutError) -> NoReturn:
        """Do what a rollback can do without its document: return the traffic, and stop the target.

        Raises:
            RollbackFailedError: always, with the traffic weights and the error of the document.
        """
        self._return_all_traffic()
        self._stop_target()
        found = f"{traffic_shares(self._environment)}. The rollout document could not be written: {error}"
        self._rollout.record("escalate", reason=found)
        raise RollbackFailedError(
            f"{found}. Repair that, then run `observatory rollback --method blue-green --emergency` to complete it"
        ) from error

    @abstractmethod
    def _return_all_traffic(self) -> None:
        """Set the balancer's weights to those before the deployment."""

    @abstractmethod
    def _stop_target(self) -> tuple[str, ...]:
        """Stop what runs on a target without traffic, and return its instances."""

    def _retry_for_rollback(self, work: Callable[[], None], failure: str) -> None:
        """Retry an action of a rollback; `failure` is the message of the error, with a place for its cause."""
        try:
            retry(
                work,
                *(BalancerError, HostsError, StepFailedError),
                clock=self._environment.clock,
                attempts=ROLLBACK_ATTEMPTS,
            )
        except (BalancerError, HostsError, StepFailedError) as error:
            self._rollout.record("escalate", reason=str(error))
            raise RollbackFailedError(failure.format(error)) from error

    def _check_restored(self, outcome: str) -> None:
        """Check that the fleet with the traffic is healthy after the rollback; `outcome` is what the rollback did."""
        if problem := self._health_problem():
            self._rollout.record("escalate", reason=f"after the rollback {problem}")
            raise RollbackFailedError(f"{outcome}, but {problem}: run `observatory status` to see its instances")

    def _wait(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition for the deployment's `health_check_s`; return whether it holds."""
        timeout_s, clock = self._deployment.health_check_s, self._environment.clock
        return wait_until(condition, timeout_s, interval_s=POLL_S, clock=clock)

    def _health_problem(self) -> str:
        """Return why the source fleet is not healthy within `health_check_s`; empty if it is."""
        fleet, hosts = self._deployment.source, self._environment.hosts
        try:
            return "" if self._wait(lambda: hosts.healthy(fleet)) else f"{fleet} is not healthy"
        except HostsError as error:
            return f"the health of {fleet} is unknown: {error}"
