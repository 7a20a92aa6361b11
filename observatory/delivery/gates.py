"""Gates: decide whether a step may continue, by comparing the new version with limits and with the version it replaces.

`observatory.settings.gate_limits` has the limits and their defaults; the setting `delivery.gates` changes them. What is
not known never passes: without metrics, with too few requests, or while both fleets are ill the verdict is `unknown`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from observatory.delivery.counts import Counts, all_routes, difference, total
from observatory.delivery.environment import ProbeResult, Reading
from observatory.delivery.evidence import RequestEvidence
from observatory.delivery.findings import Finding, Kind, Verdict, verdict_of
from observatory.delivery.sequential import RatioTest
from observatory.settings.gate_limits import GateLimits

CONFIRMED = 3  # evaluations in which a measurement exceeds its limit before it fails the step
CONFIRMED_SHARE = 1 / 3  # of all evaluations
CERTAIN_EVALUATIONS = 2  # in which the database contradicts the new version
PROBES_ALLOWED = 0.02  # share of failed probes
PROBES_THRESHOLD = math.log(1e4)
WARM_UP_REQUESTS = 1000  # before them, memory grows by what every version keeps
WARM_UP_MIB = 64.0
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one evaluation judges.

    Attributes:
        new: reading of the new version; None without metrics.
        old: reading of the old fleet; None without metrics, or where nothing runs the old version.
        probes: their result; None on a platform without them.
        outages: of what both fleets depend on.
    """

    new: Reading | None
    old: Reading | None = None
    probes: ProbeResult | None = None
    outages: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Gate:
    """The gate of one deployment; it keeps the evidence of all its steps.

    Attributes:
        limits: that it applies.
        evidence: of the requests since the shift.
    """

    limits: GateLimits
    evidence: RequestEvidence
    _new: Reading | None = None
    _old: Reading | None = None
    _first_new: Reading | None = None
    _first_old: Reading | None = None
    _requests: float = 0.0
    _served: float = 0.0
    _evaluations: int = 0
    _exceeded: Counter[Kind] = field(default_factory=Counter)
    _certain: int = 0
    _probes: RatioTest = field(default_factory=lambda: RatioTest(threshold=PROBES_THRESHOLD))
    _probe_reason: str = ""

    def begin_step(self, new: Reading | None, old: Reading | None) -> None:
        """Begin a step: requests count from these readings on."""
        self._new, self._old = new, old
        self._first_new, self._first_old = new, old
        self._requests, self._served, self._evaluations = 0.0, 0.0, 0
        self._exceeded.clear()

    def evaluate(self, found: Evaluation) -> Verdict:
        """Judge the version."""
        new, old = found.new, found.old
        if new is None:
            return verdict_of((), surroundings=("no metrics of the new fleet",))
        interval, old_interval = self._interval(self._new, new), self._interval(self._old, old)
        ill = tuple(self._illness(found, old_interval))
        began = self._new is not None
        self._new, self._old = new, old or self._old
        self._first_new, self._first_old = self._first_new or new, self._first_old or old
        self._evaluations += 1
        sessions = tuple(self._sessions(new))
        if ill:
            self.evidence.leave_out_last()
            return verdict_of(sessions, surroundings=ill)
        if began:
            self.evidence.add(interval, old_interval)
        requests = sum(each.requests for each in interval.values())
        self._requests += requests
        self._served += requests
        findings = (
            *self._of_fleet(new, old),
            *sessions,
            *self.evidence.findings(),
            *self._of_probes(found.probes),
            self._enough(),
        )
        return verdict_of(findings, missing=self._missing(new, old))

    def summaries(self) -> dict[str, dict[str, object]]:
        """Return the requests of the new version and of the old one, for the journal."""
        old = total([self.evidence.baseline, self.evidence.old])
        return {
            name: _summary(counts, reading)
            for name, counts, reading in (("new", self.evidence.new, self._new), ("old", old, self._old))
            if counts or reading
        }

    def _interval(self, before: Reading | None, now: Reading | None) -> Counts:
        return difference(now.counts, before.counts) if before and now else {}

    def _illness(self, found: Evaluation, interval: Counts) -> Iterator[str]:
        """Yield what explains bad requests other than the new version.

        An old fleet without traffic is ill where it fails its health checks.
        """
        yield from found.outages
        if found.probes and found.probes.unknown:
            yield found.probes.unknown
        if found.old is None:
            return
        for each in self.evidence.illness_of_old(interval):
            yield f"both fleets are ill: the old one has {each}"
        failed = found.old.failed_checks - self._old.failed_checks if self._old else 0.0
        if failed > 0:
            yield f"both fleets may be ill: the old one failed {failed:.0f} health checks"

    def _missing(self, new: Reading, old: Reading | None) -> tuple[str, ...]:
        """Return what the version should measure and does not: by its manifest, or because the old version does."""
        lost = [
            name
            for name, now, before in (
                ("saturation", new.saturation, old.saturation if old else None),
                ("memory", new.memory_bytes, old.memory_bytes if old else None),
            )
            if now is None and before is not None
        ]
        return tuple(f"the new version has no metric of {name}" for name in (*new.missing, *lost))

    def _of_probes(self, probes: ProbeResult | None) -> Iterator[Finding]:
        """Yield the finding about the probes; what is certain needs two evaluations, load can explain the others."""
        if probes is None:
            return
        failures, certain = len(probes.failures), any(each.certain for each in probes.failures)
        self._certain += certain
        self._requests += probes.attempts
        self._served += probes.requests
        self._probes = self._probes.add(failures, probes.attempts, PROBES_ALLOWED)
        fails = self._certain >= CERTAIN_EVALUATIONS or (
            self._probes.rejected and self._probes.bad >= self.limits.minimum_errors
        )
        if failures:
            self._probe_reason = f"probe: {probes.failures[0].reason}"
        yield Finding(
            kind="probes",
            name="probes",
            decision="failed" if fails else "unknown" if failures else "passed",
            value=self._probes.share,
            limit=PROBES_ALLOWED,
            bad=self._probes.bad,
            requests=self._probes.requests,
            reason=self._probe_reason if failures or fails else "",
        )

    def _of_fleet(self, new: Reading, old: Reading | None) -> Iterator[Finding]:
        """Yield findings about the fleet itself."""
        alerts = tuple(name for name in new.alerts if old is None or name not in old.alerts)
        firing = f"alert {', '.join(alerts)} is firing"
        yield self._confirmed("alerts", "firing alerts", len(alerts), 0, firing)
        restarted = f"{new.restarts} restarts, {self.limits.restarts} allowed"
        yield self._confirmed("restarts", "restarts", new.restarts, self.limits.restarts, restarted)
        if new.saturation is not None:
            full = f"saturation {new.saturation:.0%}, {self.limits.saturation:.0%} allowed"
            yield self._confirmed("saturation", "saturation", new.saturation, self.limits.saturation, full)
        yield from self._memory(new, old)

    def _confirmed(self, kind: Kind, name: str, value: float, limit: float, reason: str) -> Finding:
        """Return a finding that fails once the limit was exceeded in enough evaluations, in a row or not."""
        exceeds = value > limit
        self._exceeded[kind] += exceeds
        enough = max(CONFIRMED, CONFIRMED_SHARE * self._evaluations)
        fails = exceeds and self._exceeded[kind] >= enough
        return Finding(
            kind=kind,
            name=name,
            decision="failed" if fails else "unknown" if exceeds else "passed",
            value=value,
            limit=limit,
            reason=reason if exceeds else "",
        )

    def _sessions(self, new: Reading) -> Iterator[Finding]:
        """Yield whether the version holds more sessions of the database than its pools: that makes both fleets ill."""
        if new.sessions is not None and new.pool is not None:
            reason = f"the new fleet holds {new.sessions:.0f} sessions of the database, its pools have {new.pool:.0f}"
            yield self._confirmed("sessions", "sessions of the database", new.sessions, new.pool, reason)

    def _memory(self, new: Reading, old: Reading | None) -> Iterator[Finding]:
        """Yield a finding once enough requests say whether memory grows with them."""
        growth = _growth(self._first_new, new)
        if growth is None or self._served < WARM_UP_REQUESTS:
            return
        over = growth - max(_growth(self._first_old, old) or 0.0, 0.0)
        thousands = self._served / 1000
        limit = self.limits.memory_mib + WARM_UP_MIB / thousands
        reason = f"memory grew by {over / thousands:.0f} MiB for 1,000 requests, {limit:.0f} MiB allowed"
        yield self._confirmed("memory", "growth of memory, MiB for 1,000 requests", over / thousands, limit, reason)

    def _enough(self) -> Finding:
        """Return whether the step has had enough requests."""
        few, minimum = self._requests < self.limits.minimum_requests, self.limits.minimum_requests
        return Finding(
            kind="requests",
            name="requests and probes in the step",
            decision="unknown" if few else "passed",
            value=self._requests,
            limit=minimum,
            reason=f"{self._requests:.0f} requests and probes in the step, at least {minimum} are required"
            if few
            else "",
        )


def _growth(first: Reading | None, now: Reading | None) -> float | None:
    """Return by how many MiB an instance's memory grew; None if unknown."""
    if first is None or now is None or first.memory_bytes is None or now.memory_bytes is None:
        return None
    return (now.memory_bytes - first.memory_bytes) / MIB


def _summary(counts: Counts, reading: Reading | None) -> dict[str, object]:
    """Return the numbers of a fleet for the journal."""
    whole = all_routes(counts)
    quantiles = {f"p{share * 100:.0f}_s": whole.quantile(share) for share in (0.5, 0.95, 0.99)}
    return {
        "requests": round(whole.requests),
        "error_ratio": whole.failures / whole.requests if whole.requests else 0.0,
        **{name: round(seconds, 4) if seconds is not None else None for name, seconds in quantiles.items()},
        "saturation": reading.saturation if reading else None,
        "restarts": reading.restarts if reading else 0,
        "alerts": reading.alerts if reading else (),
    }
