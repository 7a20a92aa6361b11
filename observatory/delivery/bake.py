"""Evaluates one step of a deployment by its gate until it has baked, is promoted, or fails."""

from __future__ import annotations

from dataclasses import dataclass

from observatory.delivery.environment import MetricsUnavailableError, Sample
from observatory.delivery.errors import StepFailedError
from observatory.delivery.fenced_rollout import FencedRollout
from observatory.delivery.gates import Verdict, judge
from observatory.settings import FleetName
from observatory.settings.gate_limits import GateLimits
from observatory.waiting import Clock


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A fleet, or some of its instances; None stands for all of them."""

    fleet: FleetName
    instances: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a gate compares.

    Attributes:
        new: runs the new version.
        old: runs the old version; None where nothing does.
        probes: synthetic requests to the new version's fleet that give `new` the gate's minimum of requests.
    """

    new: Subject
    old: Subject | None
    probes: int


@dataclass
class _Progress:
    """Counts the evaluations of one step.

    Attributes:
        limits: of the gate.
        bake_s: seconds that must pass.
        passed_s: seconds that the gate has passed, outside of pauses.
        unknown_s: seconds without a verdict since the gate last passed.
        failed: evaluations in a row that failed.
    """

    limits: GateLimits
    bake_s: float
    passed_s: float = 0.0
    unknown_s: float = 0.0
    failed: int = 0

    def count_failures(self, verdict: Verdict) -> None:
        """Count an evaluation that failed.

        Raises:
            StepFailedError: too many failed in a row.
        """
        self.failed = self.failed + 1 if verdict.result == "failed" else 0
        if self.failed >= self.limits.failures:
            raise StepFailedError("; ".join(verdict.reasons))

    def has_baked(self, verdict: Verdict, seconds: float, *, paused: bool) -> bool:
        """Add the seconds of an evaluation; return whether the step has baked.

        Raises:
            StepFailedError: no verdict within the deadline.
        """
        if verdict.result == "passed" and not paused:
            self.passed_s, self.unknown_s = self.passed_s + seconds, 0.0
        elif verdict.result == "unknown":
            self.unknown_s += seconds
        if self.unknown_s > self.limits.deadline_s:
            raise StepFailedError(f"no verdict for {self.unknown_s:.0f} s: {'; '.join(verdict.reasons)}")
        return verdict.result == "passed" and not paused and self.passed_s >= self.bake_s


def bake(rollout: FencedRollout, comparison: Comparison) -> None:
    """Evaluate the gate at its interval until the step has baked or an operator promotes it.

    Raises:
        StepFailedError: the gate failed or gave no verdict, or an operator aborted the deployment.
        TakenOverError: another deployment or rollback took over.
    """
    limits, clock = rollout.environment.limits, rollout.environment.clock
    progress = _Progress(limits=limits, bake_s=rollout.deployment.bake_s)
    evaluated = clock.now()
    while True:
        previous, evaluated = evaluated, _sleep_until(clock, evaluated + limits.interval_s)
        request = _control_request(rollout)
        verdict = _evaluate(rollout, comparison)
        progress.count_failures(verdict)
        if request == "promote" and verdict.result != "failed":
            return rollout.update_deployment(request=None)
        if progress.has_baked(verdict, evaluated - previous, paused=request == "pause"):
            return None


def _sleep_until(clock: Clock, time: float) -> float:
    """Sleep until a time, not at all if it has passed, so that slow evaluations do not delay the next; return now."""
    clock.sleep(max(0.0, time - clock.now()))
    return clock.now()


def _control_request(rollout: FencedRollout) -> str | None:
    rollout.read()
    if rollout.deployment.request == "abort":
        raise StepFailedError("aborted by `observatory rollout abort`")
    return rollout.deployment.request


def _evaluate(rollout: FencedRollout, comparison: Comparison) -> Verdict:
    """Judge the new version now; send synthetic requests for the next evaluation where this one has too few."""
    environment = rollout.environment
    new = _sample(rollout, comparison.new)
    old = _sample(rollout, comparison.old) if comparison.old else None
    if new and not new.database_down and new.requests < environment.limits.minimum_requests:
        environment.metrics.probe(comparison.new.fleet, comparison.probes)
    verdict = judge(new, old, environment.limits)
    rollout.record("gate", verdict=verdict.result, reasons=verdict.reasons, new=new, old=old)
    return verdict


def _sample(rollout: FencedRollout, subject: Subject) -> Sample | None:
    since = rollout.deployment.exercised
    try:
        return rollout.environment.metrics.sample(subject.fleet, subject.instances, since=since)
    except MetricsUnavailableError as error:
        rollout.record("no-metrics", fleet=subject.fleet, reason=str(error))
        return None
