"""Evaluates the steps of a deployment by its gate until each has baked, is promoted, or fails."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from observatory.delivery.environment import MetricsUnavailableError, ProbeResult, Reading
from observatory.delivery.errors import DeploymentPausedError, StepFailedError
from observatory.delivery.evidence import RequestEvidence
from observatory.delivery.fenced_rollout import FencedRollout
from observatory.delivery.findings import Finding, Verdict, verdict_of
from observatory.delivery.gates import Evaluation, Gate
from observatory.delivery.releases import ReleaseError
from observatory.documents.rollout import Request
from observatory.settings import FleetName
from observatory.settings.gate_limits import GateLimits
from observatory.waiting import Clock

RECENT_S = 30.0  # before the shift: what is worse in them than before has another cause than the version
SHOWN = 8  # findings of an evaluation in the journal


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
    """

    new: Subject
    old: Subject | None


@dataclass
class _Progress:
    """Counts the evaluations of one step.

    Attributes:
        limits: of the gate.
        bake_s: seconds that must pass.
        passed_s: seconds that the gate has passed, outside of pauses.
        passed: evaluations that passed, outside of pauses.
        unknown_s: seconds without a verdict since the gate last passed.
    """

    limits: GateLimits
    bake_s: float
    passed_s: float = 0.0
    passed: int = 0
    unknown_s: float = 0.0

    def count(self, verdict: Verdict, seconds: float, *, paused: bool) -> None:
        """Count an evaluation, which stands for its interval at most: a process that was stopped saw no more."""
        seconds = min(seconds, self.limits.interval_s)
        if verdict.result == "unknown":
            self.unknown_s += seconds
            return
        self.unknown_s = 0.0
        if not paused:
            self.passed_s, self.passed = self.passed_s + seconds, self.passed + 1

    @property
    def has_baked(self) -> bool:
        """Whether the gate has passed for long enough, and does now."""
        if self.unknown_s or not self.passed:
            return False
        return self.passed_s >= self.bake_s - _ROUNDING_S and self.passed >= self.limits.minimum_evaluations

    @property
    def is_overdue(self) -> bool:
        """Whether there was no verdict within the deadline."""
        return self.unknown_s > self.limits.deadline_s


_ROUNDING_S = 0.05  # a sleep may end so much early


def mark_exercised(rollout: FencedRollout, **changes: Any) -> None:
    """Record when the version was verified, by the clock of the metrics: gates compare with what was before."""
    try:
        now = rollout.environment.metrics.now()
    except MetricsUnavailableError as error:
        rollout.record("no-metrics", fleet=rollout.deployment.target, reason=str(error))
        now = rollout.environment.clock.wall()
    rollout.update_deployment(exercised=now, **changes)


class Bake:
    """The bake of one deployment: its gate keeps the evidence of all steps."""

    def __init__(self, rollout: FencedRollout) -> None:
        self._rollout, self._environment = rollout, rollout.environment
        self._gate: Gate | None = None
        self._promised: tuple[str, ...] | None = None

    def step(self, comparison: Comparison) -> None:
        """Evaluate the gate at its interval until the step has baked or an operator promotes it.

        Raises:
            StepFailedError: the gate failed, the version lacks metrics, or an operator aborted the deployment.
            DeploymentPausedError: no verdict for long; the deployment is paused, and neither promoted nor rolled back.
            TakenOverError: another deployment or rollback took over.
        """
        limits, clock = self._environment.limits, self._environment.clock
        progress = _Progress(limits=limits, bake_s=self._rollout.deployment.bake_s)
        self._begin(comparison)
        evaluated = clock.now()
        while True:
            previous, evaluated = evaluated, _sleep_until(clock, evaluated + limits.interval_s)
            request = self._rollout.check_request()
            verdict = self._evaluate(comparison, progress)
            progress.count(verdict, evaluated - previous, paused=request == "pause")
            if verdict.result == "failed":
                raise StepFailedError("; ".join(verdict.reasons))
            if self._has_ended(request, progress):
                return
            self._pause_or_continue(progress, verdict)

    def _has_ended(self, request: Request | None, progress: _Progress) -> bool:
        """Return whether the step has ended. The newest request counts: an evaluation takes long enough for another.

        A request to promote ends with its step, also with one that has baked: it is about no other.
        """
        if request != "promote" and not progress.has_baked:
            return False
        request = self._rollout.check_request()
        if request == "promote":
            return self._rollout.complete_request(request, status="shifting", reason=None)
        if request == "pause" or not progress.has_baked:
            return False
        self._continue()
        return True

    def _begin(self, comparison: Comparison) -> None:
        self._continue()
        if gate := self._gate_of(comparison):
            gate.begin_step(self._read(comparison.new), self._read(comparison.old))

    def _gate_of(self, comparison: Comparison) -> Gate | None:
        """Return the deployment's gate, None while the requests before the shift cannot be read."""
        if self._gate:
            return self._gate
        metrics, limits, before = self._environment.metrics, self._environment.limits, comparison.old or comparison.new
        try:
            until = self._rollout.deployment.exercised or metrics.now()
            baseline, recent = (
                metrics.baseline(before.fleet, before.instances, until=until, seconds=seconds)
                for seconds in (limits.baseline_s, RECENT_S)
            )
        except MetricsUnavailableError as error:
            self._rollout.record("no-metrics", fleet=before.fleet, reason=str(error))
            return None
        evidence = RequestEvidence(limits, baseline, recent, was_ill=self._rollout.was_ill)
        self._gate = Gate(limits=limits, evidence=evidence)
        return self._gate

    def _evaluate(self, comparison: Comparison, progress: _Progress) -> Verdict:
        """Judge the new version now, and record the result."""
        probes = self._probe(comparison.new)
        gate = self._gate_of(comparison)
        if gate is None:
            verdict = verdict_of((), surroundings=("no metrics of the time before the shift",))
        else:
            verdict = gate.evaluate(self._evaluation(comparison, probes))
        deployment = self._rollout.deployment
        self._rollout.record(
            "gate",
            verdict=verdict.result,
            reasons=verdict.reasons,
            step=deployment.step + 1,
            steps=len(deployment.weights),
            weights=self._rollout.document.weights,
            request=deployment.request,
            baked_s=round(progress.passed_s, 1),
            bake_s=progress.bake_s,
            findings=[_shown(each) for each in _notable(verdict.findings)],
            **(gate.summaries() if gate else {}),
        )
        return verdict

    def _evaluation(self, comparison: Comparison, probes: ProbeResult | None) -> Evaluation:
        outages: tuple[str, ...] = ()
        new = None
        try:
            if self._promised is None:
                self._promised = self._environment.promised(self._rollout.deployment.version)
            new, outages = self._read(comparison.new, self._promised), self._environment.metrics.outages()
        except (MetricsUnavailableError, ReleaseError) as error:
            self._rollout.record("no-metrics", fleet=comparison.new.fleet, reason=str(error))
        return Evaluation(new=new, old=self._read(comparison.old), probes=probes, outages=outages)

    def _read(self, subject: Subject | None, promised: tuple[str, ...] = ()) -> Reading | None:
        if subject is None:
            return None
        since, metrics = self._rollout.deployment.exercised, self._environment.metrics
        try:
            return metrics.read(subject.fleet, subject.instances, since=since, promised=promised)
        except MetricsUnavailableError as error:
            self._rollout.record("no-metrics", fleet=subject.fleet, reason=str(error))
            return None

    def _probe(self, subject: Subject) -> ProbeResult | None:
        if self._environment.probes is None:
            return None
        return self._environment.probes.probe(
            subject.fleet, subject.instances, version=self._rollout.deployment.version
        )

    def _pause_or_continue(self, progress: _Progress, verdict: Verdict) -> None:
        """Pause the deployment while it has no verdict for too long, whatever the reason is; continue with one.

        Raises:
            StepFailedError: the version itself is the reason: it lacks metrics.
            DeploymentPausedError: it was paused for too long.
        """
        if not progress.is_overdue:
            if verdict.result == "passed":
                self._continue()
            return
        why = f"no verdict for {progress.unknown_s:.0f} s: {'; '.join(verdict.reasons)}"
        if verdict.of_version:
            raise StepFailedError(why)
        if self._rollout.deployment.status != "paused":
            self._rollout.update_deployment(status="paused", reason=why)
            self._rollout.record("paused", reason=why)
        if progress.unknown_s > progress.limits.deadline_s + progress.limits.pause_s:
            raise DeploymentPausedError(
                f"{self._rollout.deployment.version} is paused and keeps its traffic: {why}",
                remedy="Run the same command again to continue, or `observatory rollback --method blue-green`.",
            )

    def _continue(self) -> None:
        if self._rollout.deployment.status == "paused":
            self._rollout.update_deployment(status="shifting", reason=None)
            self._rollout.record("continued")


def _sleep_until(clock: Clock, time: float) -> float:
    """Sleep until a time, not at all if it has passed, so that slow evaluations do not delay the next; return now."""
    clock.sleep(max(0.0, time - clock.now()))
    return clock.now()


def _notable(findings: tuple[Finding, ...]) -> list[Finding]:
    """Return what failed, then what else did not pass, then the worst of each kind."""
    decided = [each for decision in ("failed", "unknown") for each in findings if each.decision == decision]
    kinds = {each.kind for each in decided}
    for each in findings:
        if each.kind not in kinds:
            kinds.add(each.kind)
            decided.append(each)
    return decided[:SHOWN]


def _shown(finding: Finding) -> dict[str, Any]:
    """Return a finding for the journal; a number that JSON does not have is left out."""
    return {
        key: round(value, 5) if isinstance(value, float) else value
        for key, value in asdict(finding).items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }
