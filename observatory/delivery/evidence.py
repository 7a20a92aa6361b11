"""The evidence against a new version in its requests: one sequential test for each kind of bad request and route.

Each interval adds its requests to the tests. What the version is allowed comes from the requests of the old version:
those before the shift, and those of the old fleet since. Their share of bad requests is known only within its
confidence interval, so its upper bound counts, and the tolerance of the limits is added.

An interval in which the old fleet is ill as well, or something that both fleets need, counts for nothing. Neither does
the one before: metrics are up to one scrape late.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from observatory.delivery.counts import Counts, RouteCounts, all_routes, total
from observatory.delivery.findings import Finding, Kind, Result
from observatory.delivery.sequential import INTERVAL_SHARE, RatioTest, exceeds, upper_bound
from observatory.settings.gate_limits import GateLimits

# Neither answered as expected nor an error: a redirect, which clients may not follow, a refusal, an unknown status.
REFUSALS_ARE_NOT = ("2", "5")
OF_EVERY_ROUTE = ("401", "403")  # do not depend on the route, so all routes are tested together, too
EVERY, OTHER = "all routes", "other routes"
ENOUGH = 50  # requests of the old version that make a route comparable
BOUND_ERROR = 0.05  # of the upper bound of the old version's share
ILL_ERROR = 0.001  # that an old fleet which is well counts as ill in one interval
ILL_ERROR_AS_SEEN = 0.05  # the same where a check before the shift has found it ill
TESTS = 50  # that share the rate of false alarms: five for each of ten routes
OLD_SHARE = 0.1  # of the new version's requests that the old fleet needs to be compared meanwhile
WORSE_ERROR = 0.01  # that a version which is no worse than the old fleet meanwhile counts as worse
SLOW_INTERVAL_SHARE = 0.27  # four intervals are needed: a busy machine is slow for longer than it has errors
SLOW_WITHOUT_COMPARISON = 0.05  # the limit `p95_s` is one of the 95th percentile
QUANTILES = (0.5, 0.95, 0.99)

_Measure = Callable[[RouteCounts], tuple[float, float]]  # bad requests, and all


@dataclass(frozen=True, kw_only=True)
class _Question:
    """One share of bad requests that a version is tested for.

    Attributes:
        kind: of the bad requests.
        what: they are, such as `404`.
        group: of routes: one route, `EVERY` or `OTHER`.
        measure: returns bad requests and all.
        tolerance: added to the old version's share.
        absolute: allowed share where nothing can be compared; None if that cannot be known.
        interval_share: most of a decision's evidence that comes from one interval.
    """

    kind: Kind
    what: str
    group: str
    measure: _Measure
    tolerance: float
    absolute: float | None = None
    interval_share: float = INTERVAL_SHARE

    @property
    def name(self) -> str:
        return f"{self.what} of {self.group}"

    def allowed(self, reference: Counts, *recent: Counts) -> float | None:
        """Return the share that the most lenient of the old version's requests allow; None where they are too few.

        Args:
            reference: grouped requests before the shift and meanwhile.
            recent: those of the last seconds before the shift, if they count; a group with few is compared with all.
        """
        bad, requests = self.measure(reference.get(self.group, RouteCounts()))
        allowed = self.absolute if requests < ENOUGH else self._bound(bad, requests)
        for each in recent:
            bad, requests = self.measure(each.get(self.group, RouteCounts()))
            if requests < ENOUGH:
                bad, requests = self.measure(each[OTHER])
            allowed = max(allowed or 0.0, self._bound(bad, requests))
        return allowed

    def _bound(self, bad: float, requests: float) -> float:
        """Return the upper bound of a share with the tolerance, if possible not above the absolute limit."""
        bound = upper_bound(bad, requests, BOUND_ERROR) + self.tolerance
        if self.absolute is not None:
            share = bad / requests if requests else 1.0
            bound = min(bound, max(self.absolute, share + self.tolerance))
        return min(bound, 1.0)


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """The evidence so far; replaced as a whole, so that an interval can be left out later.

    Attributes:
        new: requests of the new version.
        old: requests of the old fleet meanwhile.
        tests: by the name of their question.
    """

    new: Counts
    old: Counts
    tests: Mapping[str, RatioTest]


class RequestEvidence:
    """The evidence since the shift.

    Attributes:
        baseline: requests of the old version before the shift.
        recent: those of the last seconds before. Where they are worse than all, what began then has another cause than
            the version, and they are compared with as well.
        was_ill: whether the old version failed a check before the shift; then weaker evidence in `recent` is enough.
    """

    def __init__(self, limits: GateLimits, baseline: Counts, recent: Counts, *, was_ill: bool = False) -> None:
        self.baseline, self._limits = baseline, limits
        error = ILL_ERROR_AS_SEEN if was_ill else ILL_ERROR
        self._recent: tuple[Counts, ...] = (recent,) if self._illness(recent, (baseline,), error) else ()
        self._threshold = math.log(TESTS / limits.false_alarms)
        self._now = self._before = _Evidence(new={}, old={}, tests={})

    @property
    def new(self) -> Counts:
        """Requests of the new version that count."""
        return self._now.new

    @property
    def old(self) -> Counts:
        """Requests of the old fleet meanwhile."""
        return self._now.old

    def add(self, new: Counts, old: Counts) -> None:
        """Add an interval's requests of the new version, and of the old fleet meanwhile."""
        before = self._now
        reference = total([self.baseline, before.old, old])
        evidence = _Evidence(new=total([before.new, new]), old=total([before.old, old]), tests=before.tests)
        tests = dict(before.tests)
        comparable = _comparable(reference)
        interval, whole = _grouped(new, comparable), _grouped(evidence.new, comparable)
        references = [_grouped_reference(each, comparable) for each in (reference, *self._recent)]
        for question in self._questions(whole):
            allowed = question.allowed(*references)
            if allowed is None:
                continue
            test = tests.get(question.name)
            part = interval if test else whole  # a test that begins now has seen no bad request before
            test = test or RatioTest(threshold=self._threshold, interval_share=question.interval_share)
            tests[question.name] = test.add(*question.measure(part.get(question.group, RouteCounts())), allowed)
        self._before, self._now = before, _Evidence(new=evidence.new, old=evidence.old, tests=tests)

    def leave_out_last(self) -> None:
        """Leave out the interval that was added last."""
        self._now = self._before

    def illness_of_old(self, old: Counts) -> tuple[str, ...]:
        """Return how the old fleet's requests in an interval are worse than before the shift."""
        return self._illness(old, (self.baseline, *self._recent))

    def _illness(self, old: Counts, before: tuple[Counts, ...], error: float = ILL_ERROR) -> tuple[str, ...]:
        comparable = _comparable(self.baseline)
        interval, references = _grouped(old, comparable), [_grouped_reference(each, comparable) for each in before]
        ill = []
        for question in self._questions(interval):
            allowed, (bad, requests) = question.allowed(*references), question.measure(interval[question.group])
            if allowed is not None and exceeds(bad, requests, allowed, error):
                ill.append(f"{question.name} {bad / requests:.1%}")
        return tuple(ill)

    def findings(self) -> Iterator[Finding]:
        """Yield a finding for each test, the strongest evidence first."""
        reference = total([self.baseline, self._now.old])
        comparable = _comparable(reference)
        new = _grouped(self._now.new, comparable)
        references = [_grouped_reference(each, comparable) for each in (reference, *self._recent)]
        questions = sorted(self._questions(new), key=self._strength, reverse=True)
        for question in questions:
            yield self._finding(question, new, question.allowed(*references))

    def _strength(self, question: _Question) -> float:
        test = self._now.tests.get(question.name)
        return test.evidence if test else -math.inf

    def _finding(self, question: _Question, new: Counts, limit: float | None) -> Finding:
        bad, requests = question.measure(new.get(question.group, RouteCounts()))
        share = bad / requests if requests else 0.0
        decision: Result = "passed"
        reason = ""
        shown = f"{question.name}: {bad:.0f} of {requests:.0f} requests, {share:.2%}"
        test = self._now.tests.get(question.name)
        if bad >= self._limits.minimum_errors:
            decision, reason = self._decide(question, test, share, limit, shown)
        return Finding(
            kind=question.kind,
            name=question.name,
            decision=decision,
            value=share,
            limit=limit,
            bad=bad,
            requests=requests,
            reason=reason,
        )

    def _decide(
        self, question: _Question, test: RatioTest | None, share: float, limit: float | None, shown: str
    ) -> tuple[Result, str]:
        """Return the decision about a share with enough bad requests, and its reason."""
        if limit is None or test is None:
            return "unknown", f"{shown}; the old version has too few requests to compare with"
        if test.rejected:
            bad, requests = self._old_meanwhile(question)
            # Without a bad request the old fleet is not ill, however few requests it has.
            if bad and not exceeds(test.bad, test.requests, upper_bound(bad, requests, BOUND_ERROR), WORSE_ERROR):
                return "unknown", f"{shown}; the old fleet has {bad / requests:.2%} meanwhile: both may be ill"
            return "failed", f"{shown}, {limit:.2%} allowed"
        if test.suspicious:
            return "unknown", f"{shown}, {limit:.2%} allowed: more requests are needed to decide"
        if question.kind == "errors" and question.group == EVERY and share > self._limits.error_ratio:
            reason = "more requests are needed to decide" if share > limit else "the old version is no better"
            return "unknown", f"{shown}, {self._limits.error_ratio:.2%} allowed: {reason}"
        return "passed", ""

    def _old_meanwhile(self, question: _Question) -> tuple[float, float]:
        """Return the old fleet's bad requests and all since the shift; none where it has too little traffic."""
        old = _grouped(self._now.old, _comparable(total([self.baseline, self._now.old])))
        enough = min(ENOUGH, OLD_SHARE * all_routes(self._now.new).requests)
        if all_routes(self._now.old).requests < enough:
            return 0.0, 0.0
        return question.measure(old.get(question.group, RouteCounts()))

    def _questions(self, counts: Counts) -> Iterator[_Question]:
        """Yield what grouped counts are tested for."""
        limits = self._limits
        for group, found in counts.items():
            if group == EVERY:
                yield from (each for each in self._client_errors(group, found) if each.what in OF_EVERY_ROUTE)
            if group != OTHER:
                yield _Question(
                    kind="errors",
                    what="errors",
                    group=group,
                    measure=lambda counts: (counts.failures, counts.requests),
                    tolerance=limits.error_ratio_over_old,
                    absolute=limits.error_ratio,
                )
            if group != EVERY:
                yield from self._client_errors(group, found)
                yield from self._slow(group, found)

    def _client_errors(self, group: str, found: RouteCounts) -> Iterator[_Question]:
        for status in sorted(found.statuses):
            if not status.startswith(REFUSALS_ARE_NOT):
                yield _Question(
                    kind="client errors",
                    what=status,
                    group=group,
                    measure=functools.partial(_answered, status),
                    tolerance=self._limits.client_error_ratio_over_old,
                )

    def _slow(self, group: str, found: RouteCounts) -> Iterator[_Question]:
        before = self.baseline.get(group, RouteCounts())
        longest = _bound(found, self._limits.p95_s)
        bounds = {longest, *(self._unusual(before, share) for share in QUANTILES)}
        for bound in sorted(each for each in bounds if each is not None):
            yield _Question(
                kind="slow",
                what=f"over {bound:g} s",
                group=group,
                measure=functools.partial(_slower, bound),
                tolerance=self._limits.slow_ratio_over_old,
                absolute=SLOW_WITHOUT_COMPARISON if bound == longest else None,
                interval_share=SLOW_INTERVAL_SHARE,
            )

    def _unusual(self, before: RouteCounts, share: float) -> float | None:
        """Return the bound above which a response is slow, by a quantile of the old version."""
        quantile = before.quantile(share) if before.timed >= ENOUGH else None
        if quantile is None:
            return None
        return _bound(before, max(self._limits.slow_unnoticed_s, self._limits.slow_factor * quantile))


def _answered(status: str, counts: RouteCounts) -> tuple[float, float]:
    return counts.statuses.get(status, 0.0), counts.requests


def _slower(bound: float, counts: RouteCounts) -> tuple[float, float]:
    return counts.slower_than(bound), counts.timed


def _bound(counts: RouteCounts, seconds: float) -> float | None:
    """Return the smallest finite bound of a histogram that is at least so many seconds."""
    return min((each for each in counts.durations if seconds <= each < math.inf), default=None)


def _comparable(reference: Counts) -> frozenset[str]:
    """Return the routes with enough requests of the old version to be compared one by one."""
    return frozenset(route for route, found in reference.items() if found.requests >= ENOUGH)


def _grouped(counts: Counts, comparable: Collection[str]) -> dict[str, RouteCounts]:
    """Return the requests of all routes, of each comparable route, and of all others together."""
    others = {route: found for route, found in counts.items() if route not in comparable}
    own = {route: found for route, found in counts.items() if route in comparable}
    return {EVERY: all_routes(counts), OTHER: all_routes(others), **own}


def _grouped_reference(counts: Counts, comparable: Collection[str]) -> dict[str, RouteCounts]:
    """Return what each group is compared with; routes without requests of their own with all."""
    return {**_grouped(counts, comparable), OTHER: all_routes(counts)}
